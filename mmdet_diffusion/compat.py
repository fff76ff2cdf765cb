"""What today's stack needs mended, each with its reason and when it can go.

:func:`mend_stack` runs all of it when the package is imported, says in one line at debug level what it changed, and
leaves out what the environment variable :data:`VARIABLE` names.
"""

import atexit
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import utils as dist_utils
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint
from mmengine.utils import digit_version

import mmcv_stand_in

SUPPORTED_MMDET = ('3.0.0', '4.0.0')
VARIABLE = 'MMDET_DIFFUSION_LEAVE_OUT'


def mend_stack(config_folder: Callable[[], Path]) -> None:
    """Change in other packages what stands in the way, but for what the user wants left alone.

    Args:
        config_folder (Callable[[], Path]): see :func:`let_configs_inherit_from_this_package`.

    Raises:
        ImportError: if the variable names something else than a mend.
    """
    mends = {
        'checkpoints': allow_mmengine_checkpoints,
        'safety_check': keep_safety_check_of_checkpoints,
        'lvis': mend_lvis_evaluation,
        'cpu_processes': allow_processes_without_a_gpu,
        'config_bases': functools.partial(let_configs_inherit_from_this_package, config_folder),
    }
    left_out = [name.strip() for name in os.environ.get(VARIABLE, '').split(',') if name.strip()]
    unknown = [name for name in left_out if name not in (*mends, 'all')]
    if unknown:
        raise ImportError(f'the environment variable {VARIABLE} names {", ".join(unknown)}; it takes '
                          f'{", ".join(mends)}, with commas between, or all')
    wanted = {} if 'all' in left_out else {name: mend for name, mend in mends.items() if name not in left_out}
    changed = {name: mend() for name, mend in wanted.items()}
    listed = ', '.join(f'{what} ({name})' for name, what in changed.items() if what) or 'nothing'
    logging.getLogger('mmdet_diffusion').debug('changed in other packages: %s; left out by %s: %s', listed, VARIABLE,
                                               ', '.join(left_out) or 'nothing')


def allow_mmengine_checkpoints() -> str | None:
    """Let ``torch.load`` read mmengine's own checkpoints with its safety check on.

    Since torch 2.6 ``weights_only`` is the default and refuses the logged histories in a checkpoint. What those hold
    is allowed by name: the history itself, numpy's array reconstruction and number types. Their pickle asks for
    ``getattr`` to find the history's four statistics, and gets one that answers for these alone; where the user has
    allowed a ``getattr``, before or after, that one stays. Can go when mmengine allows its own types.

    Returns:
        str | None: what was changed; None where nothing had to be. So do the others.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):  # loads them; 2.4 and 2.5 cannot take pairs with a name
        return None
    dtypes = {type(np.dtype(code)) for code in '?bhilqBHILQefdg'}
    allowed = [HistoryBuffer, np.ndarray, np.dtype, *dtypes, _AllowedGetattr((_history_statistic, GETATTR))]
    array_module = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # names of numpy 1 and numpy 2
        allowed += [(array_module._reconstruct, f'{module}._reconstruct'), (array_module.scalar, f'{module}.scalar')]
    torch.serialization.add_safe_globals(allowed)
    return 'the allow-list of torch.serialization'


GETATTR = 'builtins.getattr'


class _AllowedGetattr(tuple):
    """A pair of function and name, as torch's allow-list takes them, that steps aside for one of the user's.

    The list is a set from which torch makes a dictionary by name at each load: of two entries of a name, either could
    come last.
    """

    def __iter__(self) -> Iterator:
        functions = [self[0]]
        for entry in torch.serialization.get_safe_globals():
            function, name = entry if type(entry) is tuple else (entry, None)
            if not isinstance(entry, _AllowedGetattr) and (name or _full_name(function)) == GETATTR:
                functions.append(function)
        return iter((functions[-1], self[1]))


def _full_name(function: object) -> str:
    return f'{getattr(function, "__module__", "")}.{getattr(function, "__qualname__", "")}'


def _history_statistic(owner: type, name: str) -> object:
    """``getattr`` for the four statistics of :class:`HistoryBuffer` and nothing else."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise ValueError(f'a checkpoint asked for attribute {name!r} of {owner!r}, which is not allowed; it was not '
                         'written by mmengine')
    return getattr(owner, name)


def keep_safety_check_of_checkpoints() -> str | None:
    """Let mmengine's loader refuse what torch's safety check refuses.

    onedl-mmengine reads such a file again without the check, and whatever code is in it runs. What its own checkpoints
    hold passes by :func:`allow_mmengine_checkpoints`. Can go when its loader raises instead.
    """
    if not hasattr(checkpoint, '_safe_torch_load'):
        return None
    checkpoint._safe_torch_load = torch.load
    return 'mmengine.runner.checkpoint._safe_torch_load'


class _NumpyWithFloat:
    """numpy with the alias ``float`` that numpy 1.24 removed."""

    float = float

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


def mend_lvis_evaluation() -> str | None:
    """Give ``lvis.eval`` the ``np.float`` that it asks for. Can go with an lvis later than 0.5.3 that does not."""
    if hasattr(np, 'float'):
        return None
    try:
        evaluation = importlib.import_module('lvis.eval')
    except ImportError:  # lvis is only needed for LVIS
        return None
    evaluation.np = _NumpyWithFloat()
    return 'lvis.eval.np'


def allow_processes_without_a_gpu() -> str:
    """Let mmengine's ``pytorch`` launcher start processes on a machine that has no GPU.

    It sets a CUDA device whatever the backend is. A config for the CPU also needs ``env_cfg.dist_cfg.backend='gloo'``
    and ``model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)``, since mmengine gives the wrapper
    a GPU too. Can go when mmengine asks first. Nor does it ever leave the process group: now and then a thread of it
    outlives the interpreter and ends a finished training with "terminate called without an active exception".
    """
    stock_init = dist_utils._init_dist_pytorch

    @functools.wraps(stock_init)
    def init(backend: str, init_backend: str = 'torch', **kwargs) -> None:
        if get_device() == 'cpu' and init_backend == 'torch':
            torch.distributed.init_process_group(backend=backend, **kwargs)
            atexit.register(_leave_process_group)
        else:
            stock_init(backend, init_backend, **kwargs)

    dist_utils._init_dist_pytorch = init
    return 'mmengine.dist.utils._init_dist_pytorch'


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def let_configs_inherit_from_this_package(config_folder: Callable[[], Path]) -> str:
    """Let a config name one of ours as its base: ``_base_ = 'mmdet_diffusion::diffusiondet/NAME.py'``.

    mmengine reads bases from its own list of packages. To be on it would not do: it asks ``pkg_resources`` where a
    package lies (gone with setuptools 82, wrong for editable installs), and gives the base a scope of the package's
    name, in which nothing is registered, since our parts are in mmdet's. A config is parsed before its
    ``custom_imports``, so this takes effect only where this package has been imported already, as our own tools do.
    Can go when mmengine finds packages by their entry points.

    Args:
        config_folder (Callable[[], Path]): gives the folder that the name's path starts from.
    """
    stock_path = Config._get_cfg_path
    prefix = 'mmdet_diffusion::'

    @functools.wraps(stock_path)
    def path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if not cfg_path.startswith(prefix):
            return stock_path(cfg_path, filename)
        found = config_folder() / cfg_path.removeprefix(prefix)
        if not found.is_file():
            raise FileNotFoundError(f'{filename} has the base {cfg_path!r}, but there is no {found}')
        return str(found), None

    Config._get_cfg_path = staticmethod(path)
    return 'mmengine.config.Config._get_cfg_path'


def check_operators() -> None:
    """Import mmcv's operators, the compiled ones or else their stand-ins.

    Raises:
        ImportError: with the cure, where there are no compiled ones and stand-ins are ruled out, or where there are
            some that cannot be imported.
    """
    mmcv_stand_in.install()
    try:
        importlib.import_module('mmcv.ops')
    except ModuleNotFoundError as error:
        if error.name != 'mmcv._ext':
            raise
        raise ImportError(f'this mmcv has no operators (mmcv-lite, or built in isolation from torch), and the '
                          f'environment variable {mmcv_stand_in.VARIABLE}={mmcv_stand_in.NEVER} rules out stand-ins; '
                          f'unset it, or install operators with {_build_command()}') from error
    except (ImportError, OSError) as error:  # of a library that was built for another torch
        spec = None if 'mmcv._ext' in sys.modules else importlib.util.find_spec('mmcv._ext')
        if spec is None or mmcv_stand_in.is_active():
            raise
        reason = (str(error).strip().splitlines() or ['no reason given'])[0]
        raise ImportError(f"mmcv's compiled operators, {spec.origin}, cannot be imported ({reason}); build them for "
                          f'this torch with {_build_command()}, or set {mmcv_stand_in.VARIABLE}='
                          f'{mmcv_stand_in.ALWAYS} for stand-ins in their place') from error


def _build_command() -> str:
    forked = 'onedl-mmcv' in importlib.metadata.packages_distributions().get('mmcv', [])
    return ('`MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
            f'{"onedl-mmcv==2.3.6" if forked else "mmcv==2.1.0"}` where torch, setuptools<82, wheel and ninja are '
            'installed')


def warn_of_untested_mmdet() -> None:
    """Warn, and go on, where mmdet is of a version that this package was not written for."""
    import mmdet
    lowest, beyond = SUPPORTED_MMDET
    if not digit_version(lowest) <= digit_version(mmdet.__version__) < digit_version(beyond):
        warnings.warn(f'mmdet_diffusion is written for mmdet >= {lowest}, < {beyond}; this is mmdet '
                      f'{mmdet.__version__}. Install one of those if something fails', stacklevel=2)


def refuse_second_diffusiondet() -> None:
    """Raise an ImportError where another package has registered a ``DiffusionDet``, such as MMDetection's project."""
    from mmdet.registry import MODELS
    other = MODELS.module_dict.get('DiffusionDet')
    if other is not None and not other.__module__.startswith('mmdet_diffusion.'):
        raise ImportError(f"'DiffusionDet' is already registered by {other.__module__} (MMDetection's "
                          'projects/DiffusionDet registers the same name). Import only one of the two: remove the '
                          "other from the config's custom_imports")
