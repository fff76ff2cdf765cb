"""What a CPU's autocast had better leave in float32: there it is the slower type (docs/performance.md)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .torch_state import autocasts_on_cpu


def float32_on_cpu() -> AbstractContextManager:
    """Within it a CPU's autocast is off; what comes in half precision stays so. Nothing changes on other devices."""
    return torch.autocast('cpu', enabled=False) if autocasts_on_cpu() else nullcontext()


class Float32Depthwise(TorchFunctionMode):
    """Within it depthwise convolutions are computed in float32 under a CPU's autocast.

    oneDNN has no fast kernels for their gradients in half precision. Only what is called within it is seen, so a
    checkpointed part that is computed again in the backward pass is in half precision then.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d and autocasts_on_cpu():
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(input: Tensor, weight: Tensor, *args, **kwargs) -> Tensor:  # noqa: A002 - torch's name
    is_depthwise = input.device.type == 'cpu' and weight.size(1) == 1 and weight.size(0) > 1 and input.size(-3) > 1
    if not is_depthwise:
        return torch.conv2d(input, weight, *args, **kwargs)
    with float32_on_cpu():
        return torch.conv2d(input.to(weight.dtype), weight, *args, **kwargs)
