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
    inputs = inputs.contiguous()  # oneDNN refuses rows that overlap
    if inputs.dim() == 2:
        return _OneDNNLinear.apply(inputs, weight, bias)
    # The result of the function itself must not be a view, or nothing could be written into it.
    return _OneDNNLinear.apply(inputs.flatten(0, -2), weight, bias).unflatten(0, inputs.shape[:-1])


def runs_on_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether :func:`linear` leaves it to oneDNN: plain float32 matrices on a CPU, outside autocast and compilers.

    ``torch.backends.mkldnn.enabled`` switches it off, as the rest of oneDNN.
    """
    operands = [inputs, weight] if bias is None else [inputs, weight, bias]
    if any(type(operand) not in (Tensor, nn.Parameter) for operand in operands):
        return False  # what a tracer, quantisation or a distributed layout put there has its own ways
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu'):
        return False
    return (all(operand.device.type == 'cpu' and operand.dtype == torch.float32 and operand.layout == torch.strided
                for operand in operands)
            and inputs.dim() > 1 and weight.dim() == 2 and inputs.numel() > 0 and inputs.size(-1) == weight.size(1)
            and (bias is None or bias.shape == weight.shape[:1])
            and torch.backends.mkldnn.enabled and hasattr(torch.ops.mkldnn, '_linear_pointwise'))


class _OneDNNLinear(torch.autograd.Function):
    """``Y = X W^T + b`` of matrices."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            bias = bias.contiguous()  # oneDNN reads it so whatever its strides
        return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, 'none', [], '')

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        grad_output = grad_output.contiguous()
        grad_inputs = linear(grad_output, weight.T) if needs_inputs else None
        grad_weight = None
        if needs_weight:  # G^T X; oneDNN is faster with the longer side as its rows
            if weight.size(0) < weight.size(1):
                grad_weight = linear(grad_output.T, inputs.T)
            else:
                grad_weight = linear(inputs.T, grad_output.T).T
        return grad_inputs, grad_weight, grad_output.sum(0) if needs_bias else None
