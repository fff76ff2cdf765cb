"""The linear layer's two ways agree, and each is taken where it belongs."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet_diffusion.layers import DynamicConv, Linear
from mmdet_diffusion.ops import linear
from mmdet_diffusion.ops.linear import runs_on_onednn


class Operators(TorchDispatchMode):
    """Names of what is dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def names_of(call):
    with Operators() as operators:
        call()
    return operators.names


ONEDNN = 'mkldnn::_linear_pointwise'
SHAPES = [((7, 24), 40), ((7, 40), 24), ((2, 3, 16), 16), ((1, 8), 1), ((2, 1, 3, 5), 7)]


@pytest.mark.parametrize(('shape', 'outputs'), SHAPES)
@pytest.mark.parametrize('has_bias', [True, False])
def test_values_and_gradients_equal_those_of_torch(shape, outputs, has_bias):
    generator = torch.Generator().manual_seed(0)

    def made(*size):
        return torch.randn(size, generator=generator)

    values = [made(*shape), made(outputs, shape[-1]), made(outputs) if has_bias else None]
    weigh = made(*shape[:-1], outputs)

    def run(function, dtype):
        leaves = [None if value is None else value.detach().clone().to(dtype).requires_grad_() for value in values]
        result = function(*leaves)
        result.backward(weigh.to(dtype))
        return [result.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]

    assert runs_on_onednn(*values[:2])
    for ours, exact in zip(run(linear, torch.float32), run(F.linear, torch.float64), strict=True):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('strided', [torch.randn(5, 32)[:, ::2], torch.randn(16, 5).T, torch.randn(5, 1).expand(5, 16)])
def test_strided_inputs_and_gradients(strided):
    weight = torch.randn(8, 16, requires_grad=True)
    torch.testing.assert_close(linear(strided, weight), F.linear(strided, weight))
    for grad in (torch.randn(8, 5).T, torch.ones(1, 1).expand(5, 8)):
        ours, = torch.autograd.grad(linear(strided, weight), weight, grad)
        theirs, = torch.autograd.grad(F.linear(strided, weight), weight, grad)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_only_gradients_that_are_asked_for_are_computed():
    inputs, weight = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    result = linear(inputs, weight, torch.randn(6))
    assert names_of(lambda: result.sum().backward()).count(ONEDNN) == 1
    assert inputs.grad.shape == (4, 8)


def test_what_follows_may_write_into_the_result():
    layer = Linear(8, 6)
    inputs = torch.randn(2, 3, 8)
    ours = torch.autograd.grad(layer(inputs).relu_().square().sum(), layer.weight)[0]
    theirs = torch.autograd.grad(F.linear(inputs, *layer.parameters()).relu().square().sum(), layer.weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_float32_on_a_cpu_runs_on_onednn_in_both_directions():
    layer, inputs = Linear(8, 6), torch.randn(4, 8, requires_grad=True)
    assert names_of(lambda: layer(inputs).sum().backward()).count(ONEDNN) == 3


@pytest.mark.parametrize(('inputs', 'why'), [
    (torch.randn(4, 8, dtype=torch.float64), 'float64'),
    (torch.randn(4, 8, dtype=torch.bfloat16), 'bfloat16'),
    (torch.randn(4, 8, device='meta'), 'another device'),
    (torch.randn(8), 'a vector'),
    (torch.randn(0, 8), 'no rows'),
])
def test_everything_else_runs_as_ever(inputs, why):
    layer = Linear(8, 6).to(inputs.device, inputs.dtype)
    assert ONEDNN not in names_of(lambda: layer(inputs)), why
    assert layer(inputs).shape == (*inputs.shape[:-1], 6)


def test_autocast_keeps_its_type():
    with torch.autocast('cpu', torch.bfloat16):
        assert Linear(8, 6)(torch.randn(4, 8)).dtype == torch.bfloat16


def test_onednn_can_be_switched_off():
    layer, inputs = Linear(8, 6), torch.randn(4, 8)
    with torch.backends.mkldnn.flags(enabled=False):
        assert ONEDNN not in names_of(lambda: layer(inputs))


def test_a_trace_holds_the_plain_product():
    graph = str(torch.jit.trace(Linear(8, 6), torch.randn(4, 8)).inlined_graph)
    assert 'aten::linear' in graph and 'mkldnn' not in graph


def test_an_export_holds_the_plain_product():
    graph = str(torch.export.export(Linear(8, 6), (torch.randn(4, 8), )).graph)
    assert 'aten.linear' in graph and 'mkldnn' not in graph


def test_unfit_shapes_are_refused_in_the_words_of_torch():
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        Linear(8, 6)(torch.randn(4, 7))


def test_names_of_the_weights_are_those_of_torch():
    assert list(Linear(8, 6).state_dict()) == list(torch.nn.Linear(8, 6).state_dict())


def test_filters_are_written_in_pieces_that_the_allocator_keeps():
    """500 boxes of the paper's sizes write 62.5 MiB of filters, and no block of 32 MiB is kept for reuse."""
    layer = DynamicConv(16, 8, 4).eval()
    proposals, features = torch.randn(50, 16), torch.randn(50, 4, 16)
    whole = layer(proposals, features)  # with gradients: in one go
    bytes_each = 4 * 2 * 16 * 8
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmdet_diffusion.layers.dynamic_conv.PIECE_BYTES', 20 * bytes_each)
        sizes = []
        hook = layer.dynamic_layer.register_forward_hook(lambda module, args, result: sizes.append(len(result)))
        torch.testing.assert_close(layer(proposals, features), whole)
        hook.remove()
        assert sum(sizes) == 50 and max(sizes) < 20
        assert layer(proposals[:0], features[:0]).shape == (0, 16)
