"""The matrix product of a linear layer, by whichever of torch's two libraries is fast on a CPU.

torch gives float32 matrices to MKL, whose code for processors that are not Intel's is slow: on an AMD EPYC oneDNN takes
half the time (docs/performance.md). torch reaches oneDNN's product by an operator that it keeps for its compiler.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``torch.nn.functional.linear``; oneDNN runs it where :func:`runs_on_onednn` says so.

    Args:
        inputs (Tensor): shape (..., I).
        weight (Tensor): shape (O, I).
        bias (Tensor | None): shape (O,).

    Returns:
        Tensor: ``inputs @ weight.T + bias``, shape (..., O).
    """
    if not runs_on_onednn(inputs, weight, bias):
        return F.linear(inputs, weight, bias)
    if inputs.dim() == 2:
        return _OneDNNLinear.apply(inputs, weight, bias)
    # The result of the function itself must not be a view, or nothing could be written into it.
    return _OneDNNLinear.apply(inputs.flatten(0, -2), weight, bias).unflatten(0, inputs.shape[:-1])


def runs_on_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether :func:`linear` leaves it to oneDNN: plain float32 matrices on a CPU, outside autocast and compilers.

    ``torch.backends.mkldnn.enabled`` switches it off, as the rest of oneDNN.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu'):
        return False
    return (_is_plain(inputs) and _is_plain(weight) and (bias is None or _is_plain(bias))
            and inputs.dim() > 1 and weight.dim() == 2 and inputs.numel() > 0 and inputs.size(-1) == weight.size(1)
            and (bias is None or bias.shape == weight.shape[:1])
            and not torch._C._are_functorch_transforms_active() and torch.backends.mkldnn.enabled
            and hasattr(torch.ops.mkldnn, '_linear_pointwise'))


def _is_plain(tensor: Tensor) -> bool:
    # Other types are of tracers, quantisation, distributed layouts, which have their own ways.
    return (type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == 'cpu'
            and tensor.layout == torch.strided)


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # oneDNN refuses rows that overlap, and reads a bias as contiguous whatever its strides.
    return torch.ops.mkldnn._linear_pointwise(inputs.contiguous(), weight,
                                              None if bias is None else bias.contiguous(), 'none', [], '')


class _OneDNNLinear(torch.autograd.Function):
    """``Y = X W^T + b`` of matrices."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = (tensor.contiguous() for tensor in ctx.saved_tensors)
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        grad_output = grad_output.contiguous()
        product = linear if torch.is_grad_enabled() else _product  # gradients of gradients need the former
        grad_inputs = product(grad_output, weight.T) if needs_inputs else None
        grad_weight = None
        if needs_weight:  # G^T X; oneDNN is faster with the longer side as its rows
            if weight.size(0) < weight.size(1):
                grad_weight = product(grad_output.T, inputs.T)
            else:
                grad_weight = product(inputs.T, grad_output.T).T
        return grad_inputs, grad_weight, grad_output.sum(0) if needs_bias else None
