#!/usr/bin/env python3
"""Say which operators of mmcv are in use: compiled ones, or the stand-ins of mmcv_stand_in.

``--install`` makes the stand-ins available to every program of this Python's environment, MMDetection's own scripts
too, by a file in its site-packages; ``--uninstall`` removes that. Compiled operators are used wherever they are,
unless the environment variable MMCV_STAND_IN says always; never rules out stand-ins.
"""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec('mmcv_stand_in') is None:  # a clone that is not installed
    sys.path.insert(0, str(ROOT))

import mmcv_stand_in  # noqa: E402
from mmcv_stand_in import startup, without_stand_in  # noqa: E402


class Fault(Exception):
    """What is wrong and its cure, in words for the user."""


def describe() -> str:
    """The report, a few lines.

    Raises:
        Fault: if there are no operators at all.
    """
    try:
        mmcv_stand_in.install()
        ops = importlib.import_module('mmcv.ops')
        extension = importlib.import_module('mmcv._ext')
    except Exception as error:  # whatever a library built for another torch may raise
        reason = (str(error).strip().splitlines() or ['no reason given'])[0]
        raise Fault(f'no operators of mmcv ({type(error).__name__}: {reason}). Cure: pip install --no-deps '
                    f'mmcv-lite==2.1.0 for stand-ins; for compiled ones, {without_stand_in.CURE}') from None
    lines = [f'mmcv in {Path(ops.__file__).parents[1]}; {mmcv_stand_in.VARIABLE} is {mmcv_stand_in.mode()}']
    if mmcv_stand_in.is_active():
        names = (name for name in extension.__all__ if not name.startswith('get_'))
        missing = (family.wanted_by for family in without_stand_in.FAMILIES)
        lines += [f'stand-ins, from {Path(extension.__file__).parent}: {", ".join(names)}',
                  'neither compiled nor a stand-in, so refused: ' + '; '.join(missing), describe_startup()]
    else:
        lines += [f'compiled operators, {extension.__file__}']
    return '\n'.join(lines)


def describe_startup() -> str:
    """Whether programs that do not import mmdet_diffusion find the stand-ins."""
    if startup.path().is_file():
        return f'every program of this environment finds the stand-ins: {startup.path()}'
    return ('programs that import mmcv.ops before mmdet_diffusion do not find the stand-ins, such as test.py of '
            'MMDetection; --install makes them available there')


def change_startup(install: bool) -> str:
    """Write or remove the file, and say so.

    Raises:
        Fault: if that is not allowed.
    """
    try:
        if install:
            return f'written: {startup.write()}; every program of this environment now finds the stand-ins'
        return f'removed: {startup.path()}' if startup.remove() else f'there is no {startup.path()}'
    except OSError as error:
        raise Fault(f'{startup.path()} cannot be {"written" if install else "removed"} ({error.strerror}). Cure: run '
                    'this as the owner of that folder, or in a virtual environment of your own; without it, import '
                    'mmdet_diffusion before anything that imports mmcv.ops') from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    change = parser.add_mutually_exclusive_group()
    change.add_argument('--install', action='store_true', help='write the file into site-packages')
    change.add_argument('--uninstall', action='store_true', help='remove it')
    args = parser.parse_args(argv)
    try:
        print(change_startup(args.install) if args.install or args.uninstall else describe())
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
