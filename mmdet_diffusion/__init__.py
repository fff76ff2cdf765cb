"""DiffusionDet (arXiv:2211.09788) for MMDetection 3.x: importing this package registers all its parts."""

from . import installation

installation.check_installed()
installation.check_opencv()

from . import compat  # noqa: E402

compat.check_operators()  # first: it makes stand-ins available to whatever imports mmcv.ops
compat.warn_of_untested_mmdet()
compat.refuse_second_diffusiondet()
compat.allow_mmengine_checkpoints()
compat.keep_safety_check_of_checkpoints()
compat.mend_lvis_evaluation()
compat.allow_processes_without_a_gpu()

from . import (  # noqa: E402
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

compat.let_configs_inherit_from_this_package(config_zoo.config_folder)

__all__ = [
    '__version__', 'config_path', 'detectors', 'heads', 'hooks', 'list_configs', 'loops', 'losses', 'optim',
    'roi_extractors', 'task_modules'
]
