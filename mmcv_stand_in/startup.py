"""A ``.pth`` file, which Python runs at every start, that makes the stand-ins available to all programs.

It names the folder of this package: the folder need not be on ``sys.path``, or not yet, and when it is gone the file
does nothing.
"""

import os
import sysconfig
from pathlib import Path

NAME = 'mmcv_stand_in.pth'

# One line of a .pth file that begins with "import" is run; of this, that line is made. Nothing here may stop Python.
PROGRAM = """\
folder = {folder!r}
file = os.path.join(folder, '__init__.py')
if 'mmcv_stand_in' not in sys.modules and os.path.isfile(file):
    from importlib.util import module_from_spec, spec_from_file_location
    try:
        spec = spec_from_file_location('mmcv_stand_in', file, submodule_search_locations=[folder])
        module = sys.modules['mmcv_stand_in'] = module_from_spec(spec)
        spec.loader.exec_module(module)
        module.install()
    except Exception as error:
        print('mmcv_stand_in.pth: no stand-ins for the operators of mmcv:', error, file=sys.stderr)
"""


def line(folder: str) -> str:
    """Content of the file.

    Args:
        folder (str): of this package.

    Returns:
        str: one line, which defines no names where Python runs it; in ASCII, since before Python 3.13 it is read in
            the encoding of the system.
    """
    return f'import os, sys; exec({PROGRAM.format(folder=folder)!a}, dict(os=os, sys=sys))\n'


def path() -> Path:
    """Where the file lies, or would lie, in the environment of this Python."""
    return Path(sysconfig.get_path('purelib')) / NAME


def write() -> Path:
    """Put the file into the environment of this Python.

    Returns:
        Path: of the file.

    Raises:
        OSError: if it cannot be written there.
    """
    file = path()
    file.write_text(line(os.path.dirname(os.path.abspath(__file__))), encoding='utf-8')
    return file


def remove() -> bool:
    """Remove the file from the environment of this Python.

    Returns:
        bool: whether there was one.

    Raises:
        OSError: if it cannot be removed.
    """
    file = path()
    was_there = file.exists()
    file.unlink(missing_ok=True)
    return was_there
