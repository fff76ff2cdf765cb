"""The matrix products of linear layers, by whichever of torch's two libraries is fast on this CPU.

torch gives float32 matrices to MKL, whose code for processors that are not Intel's is slow: on an AMD EPYC oneDNN takes
half the time (docs/performance.md). torch reaches oneDNN's product by an operator that it keeps for its compiler. Where
that pays is decided once, when this module is imported; layers stay ``torch.nn.Linear``, and know nothing of it.
"""

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from .torch_state import autocasts_on_cpu, is_recorded


def fast_linear(inputs: Tensor) -> AbstractContextManager:
    """Within it ``torch.nn.functional.linear``, and so ``nn.Linear``, takes oneDNN where :data:`ONEDNN_IS_FASTER`.

    That is for plain float32 matrices on a CPU, outside autocast, tracing, compilers, function transforms and
    forward-mode derivatives; all else runs as ever. ``torch.backends.mkldnn.enabled`` switches it off, as the rest of
    oneDNN.

    Args:
        inputs (Tensor): of what is computed within; it says on which device that is.

    Returns:
        AbstractContextManager: to be entered around the layers.
    """
    if is_recorded() or inputs.device.type != 'cpu' or not ONEDNN_IS_FASTER:
        return nullcontext()
    return _LinearByOneDNN()


class _LinearByOneDNN(TorchFunctionMode):

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # Where somebody has put another function in its place, theirs is called and counts.
        if func is F.linear and not kwargs and fits_onednn(*args):
            return _linear(*args)
        return func(*args, **(kwargs or {}))


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if inputs.dim() == 2:
        return _OneDNNLinear.apply(inputs, weight, bias)
    # The result of the function itself must not be a view, or nothing could be written into it.
    return _OneDNNLinear.apply(inputs.flatten(0, -2), weight, bias).unflatten(0, inputs.shape[:-1])


def fits_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether oneDNN's operator can take the place of ``F.linear`` for these, here and now.

    Args:
        inputs (Tensor): shape (..., I).
        weight (Tensor): shape (O, I).
        bias (Tensor | None): shape (O,).
    """
    return (_is_plain(inputs) and _is_plain(weight) and (bias is None or _is_plain(bias))
            and inputs.dim() > 1 and weight.dim() == 2 and inputs.numel() > 0 and inputs.size(-1) == weight.size(1)
            and (bias is None or bias.shape == weight.shape[:1])
            and torch.backends.mkldnn.enabled and not autocasts_on_cpu() and not is_recorded()
            and not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0)


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
        """``dX = G W``, ``dW = G^T X``, ``db`` the sum of the rows of G; None for what needs no gradient."""
        inputs, weight = (tensor.contiguous() for tensor in ctx.saved_tensors)
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        grad_output = grad_output.contiguous()
        # Gradients of gradients, batched ones and the like need torch's own function.
        product = _product if not torch.is_grad_enabled() and fits_onednn(grad_output, weight.T) else F.linear
        grad_inputs = product(grad_output, weight.T) if needs_inputs else None
        grad_weight = None
        if needs_weight:  # G^T X; oneDNN is faster with the longer side as its rows
            if weight.size(0) < weight.size(1):
                grad_weight = product(grad_output.T, inputs.T)
            else:
                grad_weight = product(inputs.T, grad_output.T).T
        return grad_inputs, grad_weight, grad_output.sum(0) if needs_bias else None


def processor_vendor() -> str:
    """``AuthenticAMD``, ``GenuineIntel`` ..., as the processor says it; empty where the system does not pass it on."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # Windows says it among other words
        return next((word for word in ('AuthenticAMD', 'GenuineIntel') if word in platform.processor()), '')
    return next((line.split(':')[1].strip() for line in lines if line.startswith('vendor_id')), '')


@torch.no_grad()
def onednn_works() -> bool:
    """Whether this torch has what is asked of it here, and right: all of it is private and may change."""
    values = torch.arange(7 * 24, dtype=torch.float32, device='cpu')
    inputs, weight = values.sin().view(7, 24), values[:5 * 24].cos().view(5, 24)
    bias = values[:5]
    try:
        right = all(torch.allclose(_product(*case).double(), F.linear(*(part.double() for part in case)), atol=1e-5)
                    for case in ((inputs, weight, bias), (inputs, weight), (weight.T, inputs.T.contiguous().T[:, :5])))
        return right and fits_onednn(inputs, weight, bias)
    except Exception:  # of a name that is gone, a changed signature, a build without oneDNN
        return False


# Not measured at start, since equal runs must round equally.
ONEDNN_IS_FASTER = processor_vendor() == 'AuthenticAMD' and torch.backends.mkl.is_available() and onednn_works()
