"""Runs MMDetection's own command-line tools with this package imported first."""

import argparse
import os
import runpy
import sys
from pathlib import Path

import mmdet
from mmengine.config import Config, DictAction

from .config_zoo import resolve_config
from .host_memory import keep_freed_memory


def run_mmdet_tool(name: str) -> None:
    """Run a script of MMDetection's ``tools`` folder as the main program, with this program's arguments.

    On a CPU the process keeps the memory that it frees, see :func:`keep_freed_memory`.

    The config may be given by its bare name, such as ``diffusiondet_r50_fpn_8xb2-450k_coco``.

    Args:
        name (str): path in that folder, such as ``train.py``.

    Raises:
        SystemExit: if the installed mmdet does not carry its tools, no config has the name, or the work folder of
            training or testing cannot be written.
    """
    package = Path(mmdet.__file__).resolve().parent
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    script = next((path for path in candidates if path.is_file()), None)
    if script is None:
        raise SystemExit(f'mmdet in {package} carries no tools/{name}; install it with `pip install mmdet==3.3.0`')
    sys.argv[1:] = with_config_path(sys.argv[1:])
    if name in ('train.py', 'test.py'):
        refuse_unwritable_work_dir(sys.argv[1:])
    keep_freed_memory()
    runpy.run_path(str(script), run_name='__main__')


def with_config_path(args: list[str]) -> list[str]:
    """Replace a bare config name, the first argument (launchers may put ``--local-rank=0`` before it), by its path.

    Raises:
        SystemExit: if it looks like a name, and no config has it.
    """
    index = _config_index(args)
    if index is None:
        return args
    try:
        return [*args[:index], resolve_config(args[index]), *args[index + 1:]]
    except ValueError as error:
        raise SystemExit(str(error)) from error


def _config_index(args: list[str]) -> int | None:
    index = next((index for index, arg in enumerate(args) if not (arg.startswith('--') and '=' in arg)), len(args))
    return None if index == len(args) or args[index].startswith('-') else index


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
    parser = argparse.ArgumentParser(add_help=False)  # with abbreviations, as mmdet's
    parser.add_argument('--work-dir', type=Path)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    known = parser.parse_known_args(args)[0]
    if known.work_dir is not None:
        return known.work_dir, '--work-dir'
    index = _config_index(args)
    if index is None or not Path(args[index]).is_file():
        return None, ''
    config = Config.fromfile(args[index])
    config.merge_from_dict(known.cfg_options or {})
    if config.get('work_dir') is not None:
        return Path(config.work_dir), 'work_dir of the config,'
    return Path('work_dirs', Path(args[index]).stem), 'the work folder'
