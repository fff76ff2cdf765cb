"""The linear layer's two ways agree, each is taken where it belongs, and neither is in anybody's way."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.ao.nn.quantized.dynamic import Linear as QuantisedLinear
from torch.autograd import forward_ad
from torch.nn import Linear
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet_diffusion.heads import DynamicDiffusionStage
from mmdet_diffusion.layers import DynamicConv
from mmdet_diffusion.ops import fast_linear
from mmdet_diffusion.ops import linear as linear_module
from mmdet_diffusion.ops.linear import fits_onednn, onednn_works, processor_vendor


@pytest.fixture(autouse=True)
def _where_onednn_is_faster(monkeypatch):
    """As on a processor of AMD's, whatever runs these tests."""
    monkeypatch.setattr(linear_module, 'ONEDNN_IS_FASTER', onednn_works())


def linear(*args):
    with fast_linear(args[0]):
        return F.linear(*args)


def run_fast(layer, inputs):
    with fast_linear(inputs):
        return layer(inputs)


def make_stage():
    torch.manual_seed(0)
    stage = DynamicDiffusionStage(num_classes=3, feat_channels=16, num_bins=4, prior_prob=0.01, num_attn_heads=4,
                                  feedforward_channels=32, dynamic_dim=4)
    stage.init_weights()
    return stage


def stage_inputs():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(size, generator=generator) for size in ((20, 4, 16), (2, 10, 16), (2, 64)))


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
NEEDS_ONEDNN = pytest.mark.skipif(not onednn_works(), reason='torch has no oneDNN')
SHAPES = [((7, 24), 40), ((7, 40), 24), ((2, 3, 16), 16), ((1, 8), 1), ((2, 1, 3, 5), 7)]


@NEEDS_ONEDNN
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

    assert fits_onednn(*values[:2])
    for ours, exact in zip(run(linear, torch.float32), run(F.linear, torch.float64), strict=True):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('strided', [torch.randn(5, 32)[:, ::2], torch.randn(16, 5).T, torch.randn(5, 1).expand(5, 16),
                                     torch.randn(40).unfold(0, 16, 1)[:5]])
def test_strided_inputs_and_gradients(strided):
    weight = torch.randn(8, 16, requires_grad=True)
    torch.testing.assert_close(linear(strided, weight), F.linear(strided, weight))
    for grad in (torch.randn(8, 5).T, torch.ones(1, 1).expand(5, 8), torch.randn(40).unfold(0, 8, 1)[:5]):
        ours, = torch.autograd.grad(linear(strided, weight), weight, grad)
        theirs, = torch.autograd.grad(F.linear(strided, weight), weight, grad)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('bias', [torch.randn(12)[::2], torch.randn(6, 3)[:, 1], torch.randn(1).expand(6),
                                  torch.randn(1)])
@pytest.mark.parametrize('shape', [(4, 8), (2, 2, 8)])
def test_any_bias_of_torch_s(bias, shape):
    inputs, weight = torch.randn(shape), torch.randn(6, 8)
    torch.testing.assert_close(linear(inputs, weight, bias), F.linear(inputs, weight, bias))


@pytest.mark.parametrize(('weight', 'bias'), [
    (torch.randn(2, 3, 8), None), (torch.randn(6, 8), torch.randn(5)),
    (torch.randn(6, 8), torch.randn(6, device='meta')), (torch.randn(6, 8), torch.randn(6, dtype=torch.float64)),
])
def test_what_torch_refuses_is_refused(weight, bias):
    for function in (F.linear, linear):
        with pytest.raises(RuntimeError):
            function(torch.randn(4, 8), weight, bias)


def test_gradients_have_gradients():
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(size, generator=generator).requires_grad_() for size in ((4, 8), (6, 8), (6, ))]

    def second(function):
        grads = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves)

    for ours, theirs in zip(second(linear), second(F.linear), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_function_transforms():
    weight, inputs = torch.randn(6, 8), torch.randn(4, 8)

    def loss(weight, row):
        return linear(row[None], weight).square().sum()

    ours = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, inputs)
    torch.testing.assert_close(ours, 2 * torch.einsum('ki,oi,kj->koj', inputs, weight, inputs), rtol=1e-4, atol=1e-4)


def test_forward_mode_derivatives():
    weight, (inputs, tangent) = torch.randn(6, 8), torch.randn(2, 4, 8)
    with forward_ad.dual_level():
        result = linear(forward_ad.make_dual(inputs, tangent), weight)
        torch.testing.assert_close(forward_ad.unpack_dual(result).tangent, tangent @ weight.T)
    derivative = torch.func.jvp(lambda inputs: linear(inputs, weight), (inputs, ), (tangent, ))[1]
    torch.testing.assert_close(derivative, tangent @ weight.T)


def test_a_stage_has_forward_mode_derivatives():
    stage, (rois, proposals, time) = make_stage().double(), (value.double() for value in stage_inputs())
    forward = torch.func.jvp(lambda time: stage(rois, proposals, time)[0], (time, ), (time, ))[1]
    step = 1e-6
    around = [stage(rois, proposals, time * (1 + sign * step))[0] for sign in (1, -1)]
    torch.testing.assert_close(forward, (around[0] - around[1]) / (2 * step), rtol=1e-5, atol=1e-7)
    stage, inputs = make_stage(), stage_inputs()  # in float32, which oneDNN takes
    with forward_ad.dual_level():
        dual = stage(*inputs[:2], forward_ad.make_dual(inputs[2], inputs[2]))[0]
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent.double(), forward, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings('ignore')  # torch names the successor of its quantisation
def test_a_stage_is_quantised_dynamically_in_all_its_linear_layers():
    stage = make_stage().eval()
    quantised = torch.ao.quantization.quantize_dynamic(stage, {Linear}, dtype=torch.qint8)
    left = [name for name, layer in quantised.named_modules() if isinstance(layer, Linear) and 'attn' not in name]
    packed = [name for name, layer in quantised.named_modules() if isinstance(layer, QuantisedLinear)]
    assert left == [] and len(packed) > 8
    with torch.no_grad():
        exact, rough = (model(*stage_inputs())[0] for model in (stage, quantised))
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0.2, atol=0.2)


def test_whoever_counts_linear_layers_by_hooks_and_exact_type_sees_all():
    stage, seen = make_stage(), []
    for layer in stage.modules():
        if type(layer) is Linear:
            layer.register_forward_hook(lambda layer, args, result: seen.append(layer))
    stage(*stage_inputs())
    # dynamic_layer and fc, two of the FFN, time_mlp, one and three before the branches, and the branches
    assert len(seen) == 11


def test_a_function_in_the_place_of_torch_s_is_called(monkeypatch):
    seen, torch_s = [], F.linear
    monkeypatch.setattr(F, 'linear', lambda *args: seen.append(args) or torch_s(*args))
    run_fast(Linear(8, 6), torch.randn(4, 8))
    assert len(seen) == 1


class Wrapped(torch.Tensor):
    """A tensor with ways of its own, as quantisation has."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func is F.linear
        return 'its own way'


def test_tensors_with_ways_of_their_own_keep_them():
    assert linear(torch.randn(4, 8), torch.randn(6, 8).as_subclass(Wrapped)) == 'its own way'


@NEEDS_ONEDNN
def test_only_gradients_that_are_asked_for_are_computed():
    inputs, weight = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    result = linear(inputs, weight, torch.randn(6))
    assert names_of(lambda: result.sum().backward()).count(ONEDNN) == 1
    assert inputs.grad.shape == (4, 8)


def test_what_follows_may_write_into_the_result():
    layer = Linear(8, 6)
    inputs = torch.randn(2, 3, 8)
    ours = torch.autograd.grad(run_fast(layer, inputs).relu_().square().sum(), layer.weight)[0]
    theirs = torch.autograd.grad(F.linear(inputs, *layer.parameters()).relu().square().sum(), layer.weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@NEEDS_ONEDNN
def test_float32_on_a_cpu_runs_on_onednn_in_both_directions():
    layer, inputs = Linear(8, 6), torch.randn(4, 8, requires_grad=True)
    assert names_of(lambda: run_fast(layer, inputs).sum().backward()).count(ONEDNN) == 3


@pytest.mark.parametrize(('inputs', 'why'), [
    (torch.randn(4, 8, dtype=torch.float64), 'float64'),
    (torch.randn(4, 8, dtype=torch.bfloat16), 'bfloat16'),
    (torch.randn(4, 8, device='meta'), 'another device'),
    (torch.randn(8), 'a vector'),
    (torch.randn(0, 8), 'no rows'),
])
def test_everything_else_runs_as_ever(inputs, why):
    layer = Linear(8, 6).to(inputs.device, inputs.dtype)
    assert ONEDNN not in names_of(lambda: run_fast(layer, inputs)), why
    assert run_fast(layer, inputs).shape == (*inputs.shape[:-1], 6)


def test_autocast_keeps_its_type():
    with torch.autocast('cpu', torch.bfloat16):
        assert run_fast(Linear(8, 6), torch.randn(4, 8)).dtype == torch.bfloat16


def test_onednn_can_be_switched_off():
    with torch.backends.mkldnn.flags(enabled=False):
        assert ONEDNN not in names_of(lambda: run_fast(Linear(8, 6), torch.randn(4, 8)))


@NEEDS_ONEDNN
def test_a_stage_runs_on_onednn_where_that_is_faster_and_as_ever_elsewhere(monkeypatch):
    stage = make_stage()
    fast = names_of(lambda: stage(*stage_inputs()))
    monkeypatch.setattr(linear_module, 'ONEDNN_IS_FASTER', False)
    plain = names_of(lambda: stage(*stage_inputs()))
    assert fast.count(ONEDNN) == 11 and ONEDNN not in plain


@NEEDS_ONEDNN
def test_a_stage_gives_the_same_values_and_gradients_either_way(monkeypatch):
    stage, weigh = make_stage(), torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(2))

    def run():
        logits = stage(*stage_inputs())[0]
        parameters = [value for name, value in stage.named_parameters() if 'reg' not in name]
        return [logits, *torch.autograd.grad((logits * weigh).sum(), parameters)]

    fast = run()
    monkeypatch.setattr(linear_module, 'ONEDNN_IS_FASTER', False)
    for one, other in zip(fast, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_changed_signature_of_a_later_torch_leaves_it_to_torch(monkeypatch):
    def changed(inputs, weight, bias, activation):
        raise AssertionError

    monkeypatch.setattr(torch.ops.mkldnn, '_linear_pointwise', changed)
    assert not onednn_works()


def test_another_meaning_in_a_later_torch_leaves_it_to_torch(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, '_linear_pointwise', lambda inputs, weight, *rest: inputs @ weight.T + 1e-3)
    assert not onednn_works()


@pytest.mark.parametrize(('line', 'vendor'), [('vendor_id\t: AuthenticAMD', 'AuthenticAMD'),
                                              ('vendor_id\t: GenuineIntel', 'GenuineIntel'), ('CPU part\t: 0xd0c', '')])
def test_the_vendor_is_read_where_linux_says_it(monkeypatch, line, vendor):
    monkeypatch.setattr(Path, 'read_text', lambda self: f'processor\t: 0\n{line}\nmodel\t: 17\n')
    assert processor_vendor() == vendor


def test_the_vendor_is_read_where_windows_says_it(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, 'read_text', missing)
    monkeypatch.setattr(linear_module.platform, 'processor', lambda: 'AMD64 Family 25 Model 33, AuthenticAMD')
    assert processor_vendor() == 'AuthenticAMD'


def test_a_trace_holds_the_plain_product():
    graph = str(torch.jit.trace(make_stage().eval(), stage_inputs(), check_trace=False).inlined_graph)
    assert 'aten::linear' in graph and 'mkldnn' not in graph


def test_an_export_holds_the_plain_product():
    graph = str(torch.export.export(make_stage().eval(), stage_inputs()).graph)
    assert ('aten.linear' in graph or 'aten.addmm' in graph) and 'mkldnn' not in graph


def test_unfit_shapes_are_refused_in_the_words_of_torch():
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        run_fast(Linear(8, 6), torch.randn(4, 7))


@pytest.mark.parametrize('number', [19, 20, 39, 40, 50])
def test_filters_are_written_in_pieces_that_the_allocator_keeps(number):
    """500 boxes of the paper's sizes write 62.5 MiB of filters, and no block of 32 MiB is kept for reuse."""
    layer = DynamicConv(16, 8, 4).eval()
    proposals, features = torch.randn(number, 16), torch.randn(number, 4, 16)
    whole = layer(proposals, features)  # with gradients: in one go
    bytes_each = 4 * 2 * 16 * 8
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmdet_diffusion.layers.dynamic_conv.PIECE_BYTES', 20 * bytes_each)
        sizes = []
        hook = layer.dynamic_layer.register_forward_hook(lambda module, args, result: sizes.append(len(result)))
        torch.testing.assert_close(layer(proposals, features), whole)
        hook.remove()
        assert sum(sizes) == number and max(sizes) == 19
        assert layer(proposals[:0], features[:0]).shape == (0, 16)
