"""Runs MMDetection's own command-line tools with this package imported first."""

import argparse
import os
import runpy
import sys
import warnings
from pathlib import Path

import mmdet
from mmengine.config import Config, DictAction
from mmengine.device import get_device

from diffusiondet_runtime.errors import first_line

from .config_zoo import refuse_missing_config, with_config_path, with_path_at
from .host_memory import keep_freed_memory
from .input_checks import (
    refuse_faulty_annotations,
    refuse_half_precision,
    refuse_missing_checkpoint,
    refuse_missing_data,
    refuse_missing_last_checkpoint,
    refuse_missing_model,
    refuse_unreadable_checkpoint,
)

PARTS = {'train.py': ('train_dataloader', 'val_dataloader', 'val_evaluator'),  # what it reads data by
         'test.py': ('test_dataloader', 'test_evaluator')}


def run_mmdet_tool(name: str) -> None:
    """Run a script of MMDetection's ``tools`` folder as the main program, with this program's arguments.

    On a CPU the process keeps the memory that it frees, see :func:`keep_freed_memory`.

    The config may be given by its bare name, such as ``diffusiondet_r50_fpn_8xb2-450k_coco``. What training or testing
    would only miss after seconds or minutes is looked for first.

    Args:
        name (str): path in that folder, such as ``train.py``.

    Raises:
        SystemExit: if the installed mmdet does not carry its tools, no config has the name, the work folder of training
            or testing cannot be written, or a checkpoint or data that they need are not there.
    """
    package = Path(mmdet.__file__).resolve().parent
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    script = next((path for path in candidates if path.is_file()), None)
    if script is None:
        raise SystemExit(f'mmdet in {package} carries no tools/{name}; install it with `pip install mmdet==3.3.0`')
    if name in PARTS and not {'-h', '--help'} & set(sys.argv[1:]):
        sys.argv[1:] = checked_arguments(name, sys.argv[1:])
    else:
        sys.argv[1:] = with_config_path(sys.argv[1:])
    keep_freed_memory()
    warn_of_restarts()
    try:
        runpy.run_path(str(script), run_name='__main__')
    except Exception as error:
        explain(error, name, sys.argv[1:])
        raise


def explain(error: Exception, name: str, args: list[str]) -> None:
    """Say in one line what ended a training or test, where that is a checkpoint or an annotation file.

    Args:
        error (Exception): that ended it.
        name (str): of the tool of mmdet's.
        args (list[str]): its own, the config by its path.

    Raises:
        SystemExit: names the file.
    """
    if name not in PARTS:
        return
    known = parse_known(args)
    config = read_config(known.config, known.cfg_options)
    given = known.checkpoint if name == 'test.py' else known.resume
    if given == 'auto':
        given = 'the last checkpoint'
    refuse_unreadable_checkpoint(error, given or config.get('load_from') or 'the checkpoint')
    refuse_faulty_annotations(error, config, PARTS[name])


def checked_arguments(name: str, args: list[str]) -> list[str]:
    """The arguments with the config by its path, wherever it stands among them, once all that they name is there.

    Args:
        name (str): ``train.py`` or ``test.py``.
        args (list[str]): of that tool of mmdet's.

    Raises:
        SystemExit: see :func:`run_mmdet_tool`.
    """
    args = with_path_at(args, _place_of_config(args))
    refuse_missing_config(parse_known(args).config)
    refuse_unwritable_work_dir(args)
    args = without_vain_resume(args)
    refuse_missing_inputs(name, args)
    return with_launcher(with_tta_model(args))


def _place_of_config(args: list[str]) -> int | None:
    """Among words of which the value of an option may be the same."""
    config = parse_known(args).config
    places = (place for place, word in enumerate(args) if word == config)
    return next((place for place in places
                 if parse_known([*args[:place], f'{config}?', *args[place + 1:]]).config != config), None)


def without_vain_resume(args: list[str]) -> list[str]:
    """Leave out a bare ``--resume`` where there is nothing to resume from: with it mmdet would forget ``load_from``."""
    if parse_known(args).resume != 'auto':
        return args
    work_dir = _work_dir(args)[0]
    if work_dir is None or (work_dir / 'last_checkpoint').exists():
        return args
    place = next(index for index, arg in enumerate(args)  # argparse takes --resum too
                 if arg.startswith('--re') and '--resume'.startswith(arg.partition('=')[0]))
    following = args[place + 1:]
    return [*args[:place], *(following[1:] if following[:1] == ['auto'] else following)]


def refuse_unwritable_work_dir(args: list[str]) -> None:
    """Stop before anything is built or trained that could not be saved.

    Args:
        args (list[str]): of mmdet's tools/train.py or tools/test.py, the config by its path.

    Raises:
        SystemExit: if the folder that they would write to, by ``--work-dir``, the config or its name, is or lies in
            something that is no folder or may not be written.
    """
    work_dir, origin = _work_dir(args)
    if work_dir is None:
        return
    # os.path: what may not be looked at is not there, and the folder that hides it is the nearest.
    nearest = next(path for path in (work_dir.absolute(), *work_dir.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK | os.X_OK):
        fault = 'may not be written' if os.path.isdir(nearest) else 'is no folder'
        raise SystemExit(f'{origin} {work_dir} cannot be made: {nearest} {fault}. Give another folder by --work-dir')


def _work_dir(args: list[str]) -> tuple[Path | None, str]:
    """The folder that mmdet's tools take, in their order, and its origin; None if there is no such config."""
    known = parse_known(args)
    if known.work_dir is not None:
        return known.work_dir, '--work-dir'
    if known.config is None or not Path(known.config).is_file():
        return None, ''
    config = read_config(known.config, known.cfg_options)
    if config.get('work_dir') is not None:
        return Path(config.work_dir), 'work_dir of the config,'
    return Path('work_dirs', Path(known.config).stem), 'the work folder'


def refuse_missing_inputs(name: str, args: list[str]) -> None:
    """Stop before anything is built where a checkpoint, data folder or annotation file is not there.

    Args:
        name (str): ``train.py`` or ``test.py``.
        args (list[str]): of that tool of mmdet's, the config by its path.

    Raises:
        SystemExit: names the first that is missing, and the setting that asks for it.
    """
    known = parse_known(args)
    if known.config is None or not Path(known.config).is_file():
        return
    config = read_config(known.config, known.cfg_options)
    refuse_missing_model(config)
    refuse_half_precision(config, get_device(), training=name == 'train.py')
    if name == 'test.py':
        refuse_missing_checkpoint(known.checkpoint)
        refuse_missing_data(config, PARTS[name])
        return
    if known.resume is None:
        refuse_missing_checkpoint(config.get('load_from'), 'load_from of the config')
    elif known.resume == 'auto':
        refuse_missing_last_checkpoint(_work_dir(args)[0])
    else:
        refuse_missing_checkpoint(known.resume, '--resume')
    refuse_missing_data(config, PARTS[name])


def with_tta_model(args: list[str]) -> list[str]:
    """Add our model of test-time augmentation under ``--tta`` where a config has none: mmdet's keeps 100 detections."""
    known = parse_known(args)
    config = read_config(known.config, known.cfg_options) if known.tta else {}
    if config.get('model', {}).get('type') != 'DiffusionDet' or 'tta_model' in config:
        return args
    option = 'tta_model.type=DiffusionDetTTAModel'
    place = next((index for index, arg in enumerate(args) if arg.startswith('--cfg')), None)
    if place is None:
        return [*args, '--cfg-options', option]
    flag, _, value = args[place].partition('=')
    return [*args[:place], flag, *([value] if value else []), option, *args[place + 1:]]


def with_launcher(args: list[str]) -> list[str]:
    """Add ``--launcher pytorch`` under torchrun: without it every process would train alone, on the same data."""
    under_torchrun = 'TORCHELASTIC_RUN_ID' in os.environ and int(os.environ.get('WORLD_SIZE', 1)) > 1
    if not under_torchrun or parse_known(args).launcher is not None:
        return args
    return [*args, '--launcher', 'pytorch']


def warn_of_restarts() -> None:
    """Say how torchrun has to be started where it is to restart the processes, once for a machine."""
    environment = os.environ
    if (int(environment.get('TORCHELASTIC_MAX_RESTARTS', 0)) > 0 and environment.get('LOCAL_RANK') == '0'
            and environment.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'):
        warnings.warn('torchrun --max-restarts: restarted processes find addresses of those before them in the store '
                      'that torchrun shares with them, and may wait for them in vain. Start torchrun with '
                      'TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, and with --resume', stacklevel=2)


def parse_known(args: list[str]) -> argparse.Namespace:
    """What this package needs to know of the arguments of mmdet's tools/train.py or tools/test.py.

    Raises:
        SystemExit: if an option is not KEY=VALUE, or lacks its value.
    """
    parser = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)  # with abbreviations, as mmdet's
    parser.add_argument('config', nargs='?')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('--work-dir', type=Path)
    parser.add_argument('--resume', nargs='?', const='auto')
    parser.add_argument('--launcher')
    parser.add_argument('--cfg-options', nargs='+', default=[])
    for valued in ('--out', '--show-dir', '--wait-time', '--local_rank', '--local-rank'):
        parser.add_argument(valued)
    for flag in ('--show', '--tta', '--amp', '--auto-scale-lr'):  # else --show would be short for --show-dir
        parser.add_argument(flag, action='store_true')
    known = parser.parse_known_intermixed_args(args)[0]
    known.cfg_options = parse_cfg_options(known.cfg_options)
    return known


def parse_cfg_options(options: list[str]) -> dict[str, object]:
    """KEY=VALUE as mmengine reads them.

    Raises:
        SystemExit: if one has no value.
    """
    wrong = next((option for option in options if '=' not in option), None)
    if wrong is not None:
        raise SystemExit(f'--cfg-options takes KEY=VALUE, got {wrong!r}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *options]).cfg_options if options else {}


def read_config(path: str, options: dict[str, object]) -> Config:
    """A config with the options of a command line.

    Raises:
        SystemExit: if it cannot be read.
    """
    try:
        config = Config.fromfile(path)
    except Exception as error:  # whatever the code in it raises
        raise SystemExit(f'{path} cannot be read as a config ({type(error).__name__}: {first_line(error)})') from error
    config.merge_from_dict(options)
    return config
