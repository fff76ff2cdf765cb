"""The module that is imported as ``mmcv._ext`` where no compiled one is: kernels under mmcv's names for them."""

import logging
import multiprocessing
import os
from collections.abc import Callable

from mmcv_stand_in.build_check import refuse_layers_without_stand_in
from mmcv_stand_in.kernels.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
)
from mmcv_stand_in.kernels.focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from mmcv_stand_in.kernels.modulated_deform_conv import modulated_deform_conv_backward, modulated_deform_conv_forward
from mmcv_stand_in.kernels.ms_deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from mmcv_stand_in.kernels.nms import nms
from mmcv_stand_in.kernels.nms_match import nms_match
from mmcv_stand_in.kernels.roi_align import roi_align_backward, roi_align_forward
from mmcv_stand_in.kernels.roi_pool import roi_pool_backward, roi_pool_forward
from mmcv_stand_in.kernels.soft_nms import softnms
from mmcv_stand_in.without_stand_in import refusing_function

__all__ = [
    'deform_conv_backward_input', 'deform_conv_backward_parameters', 'deform_conv_forward', 'get_compiler_version',
    'get_compiling_cuda_version', 'modulated_deform_conv_backward', 'modulated_deform_conv_forward',
    'ms_deform_attn_backward', 'ms_deform_attn_forward', 'nms', 'nms_match', 'roi_align_backward', 'roi_align_forward',
    'roi_pool_backward', 'roi_pool_forward', 'sigmoid_focal_loss_backward', 'sigmoid_focal_loss_forward', 'softnms'
]


def get_compiler_version() -> str:
    """For the report on the environment that mmengine logs."""
    return 'none (operators are those of mmcv_stand_in)'


def get_compiling_cuda_version() -> str:
    """Likewise."""
    return 'none'


def __getattr__(name: str) -> Callable:
    """A function that refuses, for any other operator: mmcv asks for all of them when ``mmcv.ops`` is imported."""
    if name.startswith('_'):  # __path__ or __wrapped__ are Python's questions, which have the answer no
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return refusing_function(name)


def _log_once() -> None:
    """Loader workers and the other processes of a training would only repeat it."""
    if multiprocessing.parent_process() is None and os.environ.get('RANK', '0') == '0':
        # On stderr, if nothing else is set up: programs may print results. Training logs have it from mmengine's
        # report on the environment, which asks for the compiler's version.
        logging.getLogger('mmcv_stand_in').warning(
            "mmcv's compiled operators are not in use: torch stand-ins of mmcv_stand_in take their place, slower on a "
            'GPU; some operators have none and say so')


if __name__ == 'mmcv._ext':  # in use, and not looked at beside compiled operators
    refuse_layers_without_stand_in()
    _log_once()
