"""Runs MMDetection's own command-line tools with this package imported first."""

import runpy
from pathlib import Path

import mmdet


def run_mmdet_tool(name: str) -> None:
    """Run a script of MMDetection's ``tools`` folder as the main program, with this program's arguments.

    Args:
        name (str): path in that folder, such as ``train.py``.

    Raises:
        SystemExit: if the installed mmdet does not carry its tools.
    """
    package = Path(mmdet.__file__).resolve().parent
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    script = next((path for path in candidates if path.is_file()), None)
    if script is None:
        raise SystemExit(f'mmdet in {package} carries no tools/{name}; install it with `pip install mmdet==3.3.0`')
    runpy.run_path(str(script), run_name='__main__')
