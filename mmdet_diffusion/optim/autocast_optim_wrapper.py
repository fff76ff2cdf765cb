"""Training in bfloat16 on any device that computes in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

from mmdet.registry import OPTIM_WRAPPERS
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ..half_precision import half_dtype, half_precision
from ..ops import float32_on_cpu


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Runs the forward pass under autocast, on a CPU too, where mmengine's ``AmpOptimWrapper`` insists on a GPU.

    bfloat16 has the range of float32, so no loss is scaled and weights, gradients and the optimiser's state stay in
    float32. On a CPU depthwise convolutions (``nn.Conv2d`` with a group for each channel) are computed in float32, too:
    oneDNN's gradients of them take two to four times as long in bfloat16. One config line:
    ``optim_wrapper.type='AutocastOptimWrapper'``.

    Args:
        dtype (str): ``bfloat16``.
        **kwargs: of mmengine's ``OptimWrapper``.

    Raises:
        ValueError: if ``dtype`` is another, float16 included, whose gradients vanish unless losses are scaled.
    """

    def __init__(self, *, dtype: str = 'bfloat16', **kwargs) -> None:
        if dtype == 'float16':
            raise ValueError("optim_wrapper.dtype is 'float16', whose gradients vanish unless losses are scaled. Cure: "
                             "optim_wrapper.type='AmpOptimWrapper' on a GPU, or bfloat16")
        super().__init__(**kwargs)
        self.dtype = half_dtype(dtype, 'optim_wrapper.dtype')

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of the forward pass of a training step.

        Args:
            model (nn.Module): its parameters' device is where autocast is on.

        Raises:
            RuntimeError: if that device does not compute in the type.
        """
        device = next(model.parameters()).device
        if device.type == 'cpu':
            keep_depthwise_in_float32(model)
        with super().optim_context(model), half_precision(device, self.dtype, 'optim_wrapper.dtype'):
            yield


def keep_depthwise_in_float32(model: nn.Module) -> None:
    """Have depthwise convolutions leave a CPU's autocast, here and where a checkpointed part is computed again."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            layer._conv_forward = MethodType(_conv_forward_in_float32, layer)


def _conv_forward_in_float32(self: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with float32_on_cpu():
        return type(self)._conv_forward(self, inputs.to(weight.dtype), weight, bias)
