"""The matrix products that a piece of code runs, recorded and replayed alone: the time that it cannot go below."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PRODUCTS = ('mm', 'addmm', 'bmm', 'baddbmm', 'mv', 'addmv', 'linear', '_linear_pointwise', '_addmm_activation')
ATTENTION = '_scaled_dot_product_'


class RecordedProduct:
    """One product with operands of its own, of the recorded shapes and strides.

    Args:
        func (torch._ops.OpOverload): operator, in place or not.
        args (tuple): of the recorded call.
        kwargs (dict): of the recorded call, without ``out``.
        result (Tensor | tuple): of the recorded call.
    """

    def __init__(self, func: torch._ops.OpOverload, args: tuple, kwargs: dict, result: Tensor | tuple) -> None:
        self.name = _base_name(func)
        self.args, self.kwargs = tree_map_only(Tensor, _like, (args, kwargs))
        packet = getattr(getattr(torch.ops, func.namespace), self.name)
        if 'out' in packet.overloads():
            self.func, self.kwargs['out'] = packet.out, _like(result)
        else:
            self.func = func

    def __call__(self) -> None:
        """Run it."""
        self.func(*self.args, **self.kwargs)


class MatrixProducts(TorchDispatchMode):
    """Records the products that are dispatched while it is entered; the fused attention counts as one.

    Attributes:
        products (list[RecordedProduct]): in the order of their calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[RecordedProduct] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = _base_name(func)
        if func.namespace in ('aten', 'mkldnn') and (name in PRODUCTS or name.startswith(ATTENTION)):
            inputs = {key: value for key, value in kwargs.items() if key != 'out'}
            self.products.append(RecordedProduct(func, args, inputs, result))
        return result

    def replay(self) -> None:
        """Run all of them, without what lies between."""
        for product in self.products:
            product()


def record_products(call: Callable[[], object]) -> MatrixProducts:
    """Run ``call`` without gradients and record its products."""
    with torch.no_grad(), _attention_in_parts(), MatrixProducts() as recorded:
        call()
    return recorded


@contextmanager
def _attention_in_parts():
    """Without torch's fast path, which is one operator for projections and attention."""
    if not hasattr(torch.backends, 'mha'):  # before torch 2.3 it cannot be turned off
        yield
        return
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _base_name(func: torch._ops.OpOverload) -> str:
    return func._schema.name.split('::')[1].rstrip('_')


def _like(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and type on memory of its own; overlaps of expanded ones are kept."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.zeros(max(extent, 0), dtype=tensor.dtype, device=tensor.device)
    if tensor.is_floating_point():
        memory.normal_()
    return memory.as_strided(tensor.shape, tensor.stride())
