"""Runs MMDetection's own command-line tools with this package imported first."""

import argparse
import os
import runpy
import sys
from pathlib import Path

import mmdet

from .config_zoo import resolve_config
from .host_memory import keep_freed_memory


def run_mmdet_tool(name: str) -> None:
    """Run a script of MMDetection's ``tools`` folder as the main program, with this program's arguments.

    On a CPU the process keeps the memory that it frees, see :func:`keep_freed_memory`.

    The config may be given by its bare name, such as ``diffusiondet_r50_fpn_8xb2-450k_coco``.

    Args:
        name (str): path in that folder, such as ``train.py``.

    Raises:
        SystemExit: if the installed mmdet does not carry its tools, no config has the name, or ``--work-dir`` cannot be
            written.
    """
    package = Path(mmdet.__file__).resolve().parent
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    script = next((path for path in candidates if path.is_file()), None)
    if script is None:
        raise SystemExit(f'mmdet in {package} carries no tools/{name}; install it with `pip install mmdet==3.3.0`')
    sys.argv[1:] = with_config_path(sys.argv[1:])
    refuse_unwritable_work_dir(sys.argv[1:])
    keep_freed_memory()
    runpy.run_path(str(script), run_name='__main__')


def with_config_path(args: list[str]) -> list[str]:
    """Replace a bare config name, the first argument (launchers may put ``--local-rank=0`` before it), by its path.

    Raises:
        SystemExit: if it looks like a name, and no config has it.
    """
    index = next((index for index, arg in enumerate(args) if not (arg.startswith('--') and '=' in arg)), len(args))
    if index == len(args) or args[index].startswith('-'):
        return args
    try:
        return [*args[:index], resolve_config(args[index]), *args[index + 1:]]
    except ValueError as error:
        raise SystemExit(str(error)) from error


def refuse_unwritable_work_dir(args: list[str]) -> None:
    """Stop before anything is built or trained that could not be saved.

    Raises:
        SystemExit: if ``--work-dir`` is or lies in something that is no folder or may not be written.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--work-dir', type=Path)
    work_dir = parser.parse_known_args(args)[0].work_dir
    if work_dir is None:
        return
    nearest = next(path for path in (work_dir.absolute(), *work_dir.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        fault = 'may not be written' if nearest.is_dir() else 'is no folder'
        raise SystemExit(f'--work-dir {work_dir} cannot be made: {nearest} {fault}. Give another folder')
