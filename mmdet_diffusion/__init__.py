"""DiffusionDet (arXiv:2211.09788) for MMDetection 3.x: importing this package registers all its parts."""

from . import installation

installation.check_installed()
installation.check_opencv()

from . import compat  # noqa: E402

compat.check_operators()  # first: it makes stand-ins available to whatever imports mmcv.ops
compat.warn_of_untested_mmdet()
compat.refuse_second_diffusiondet()

from . import (  # noqa: E402
    backbones,
    config_zoo,
    detectors,
    heads,
    hooks,
    loops,
    losses,
    optim,
    roi_extractors,
    task_modules,
)
from .config_zoo import config_path, list_configs  # noqa: E402
from .version import __version__  # noqa: E402

compat.mend_stack(config_zoo.config_folder)

__all__ = [
    '__version__', 'backbones', 'config_path', 'detectors', 'heads', 'hooks', 'list_configs', 'loops', 'losses',
    'optim', 'roi_extractors', 'task_modules'
]
