"""The finder that answers for ``mmcv._ext`` alone. Python's import protocol, PEP 451.

Appended to ``sys.meta_path`` it is asked after all ordinary finders: compiled operators win by construction.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from types import ModuleType

EXTENSION = 'mmcv._ext'
VARIABLE = 'MMCV_STAND_IN'
AUTO, ALWAYS, NEVER = MODES = ('auto', 'always', 'never')
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'extension.py')


class StandInFinder:
    """Gives the file of the stand-ins a module's spec, with the loader that Python uses for any source file."""

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        """Spec of ``mmcv._ext``; None, which is "not mine", for any other name."""
        if name != EXTENSION:
            return None
        spec = ModuleSpec(name, SourceFileLoader(name, SOURCE), origin=SOURCE)
        spec.has_location = True  # __file__ and the cached byte code, as of any module
        return spec


def mode() -> str:
    """What the environment variable asks for: ``auto`` (where it is not set), ``always`` or ``never``.

    Raises:
        ValueError: if it has another value.
    """
    value = os.environ.get(VARIABLE) or AUTO
    if value not in MODES:
        raise ValueError(f'the environment variable {VARIABLE} must be one of {", ".join(MODES)}, got {value!r}: auto '
                         "takes stand-ins for mmcv's operators where no compiled ones are, always takes them in any "
                         'case, never takes compiled ones alone')
    return value


def install() -> None:
    """Make the stand-ins available to ``import mmcv.ops``, as the environment variable says; again changes nothing.

    Raises:
        ValueError: if the variable has a value that it cannot have.
        RuntimeError: if stand-ins are asked for in any case and the compiled operators have been imported already.
    """
    wanted = mode()
    uninstall()
    if wanted == ALWAYS:
        loaded = sys.modules.get(EXTENSION)
        if loaded is not None and not _is_stand_in(loaded.__spec__):
            raise RuntimeError(f"{VARIABLE}={ALWAYS}, but mmcv's compiled operators have been imported already; import "
                               'mmcv_stand_in and call its install() before anything that imports mmcv.ops')
        sys.meta_path.insert(0, StandInFinder())
    elif wanted == AUTO:
        sys.meta_path.append(StandInFinder())


def uninstall() -> None:
    """Take the finder out again. Stand-ins that have been imported by then stay in use."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder) is not StandInFinder]


def is_active() -> bool:
    """Whether the ``mmcv._ext`` that has been imported, or that would be, is the stand-in. Imports nothing."""
    loaded = sys.modules.get(EXTENSION)
    return _is_stand_in(loaded.__spec__ if loaded is not None else _find_extension())


def _find_extension() -> ModuleSpec | None:
    """As ``find_spec`` of the whole name, which would import mmcv for it."""
    parent = find_spec('mmcv')
    if parent is None or parent.submodule_search_locations is None:
        return None
    for finder in sys.meta_path:
        find = getattr(finder, 'find_spec', None)
        spec = find(EXTENSION, list(parent.submodule_search_locations), None) if find else None
        if spec is not None:
            return spec
    return None


def _is_stand_in(spec: ModuleSpec | None) -> bool:
    return spec is not None and spec.origin == SOURCE
