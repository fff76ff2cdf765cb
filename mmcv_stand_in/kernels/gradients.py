"""Gradients by running a forward function again: kernels run where autograd does not record."""

from collections.abc import Callable

import torch
from torch import Tensor


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Gradient of ``sum(function(*inputs) * grad_output)`` by each input.

    Args:
        function (Callable[..., Tensor]): differentiable in all its arguments.
        inputs (tuple[Tensor, ...]): its arguments.
        grad_output (Tensor): of the shape of its result, any floating dtype.

    Returns:
        tuple[Tensor, ...]: of the shapes of the inputs.
    """
    # mmcv's kernels do not take part in autocast, which would lower the products of this backward pass.
    with torch.enable_grad(), torch.autocast(grad_output.device.type, enabled=False):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output = function(*leaves)
        return torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
