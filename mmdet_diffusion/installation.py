"""Whether what this package needs is installed; only the standard library, to be asked before anything is imported."""

import importlib
from importlib.util import find_spec

NEEDED = ('torch', 'mmengine', 'mmcv', 'mmdet')
CURE = ('in a clone of it, pip install ".[lite]" (nothing to compile) or ".[onedl]" (the maintained forks); for mmcv '
        'with its compiled operators, docs/operators.md')


def check_installed() -> None:
    """Raise an ImportError with the cure where torch or a part of OpenMMLab's is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f'mmdet_diffusion needs {", ".join(missing)}, not installed here. Cure: {CURE}')


def check_opencv() -> None:
    """Raise an ImportError that leads to the cure where OpenCV cannot be imported, as on a server without libGL."""
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        raise ImportError(f'OpenCV cannot be imported ({error}); `mmdet-diffusion doctor` names the cure') from error
