"""Gradients by running a forward function again: kernels run where autograd does not record."""

from collections.abc import Callable

import torch
from torch import Tensor


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Gradient of ``sum(function(*inputs) * grad_output)`` by each input.

    Args:
        function (Callable[..., Tensor]): differentiable in all its arguments.
        inputs (tuple[Tensor, ...]): its arguments.
        grad_output (Tensor): of the shape of its result.

    Returns:
        tuple[Tensor, ...]: of the shapes of the inputs.
    """
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)
