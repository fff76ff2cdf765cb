"""torch's counter of floating-point operations sees the head's work, as counted by hand."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from mmdet_diffusion.ops import linear, register_flop_formulas
from mmdet_diffusion.testing import build_detector, random_boxes, small_model_cfg

IMAGES, BOXES, CHANNELS, CLASSES, STAGES = 2, 30, 16, 3, 2
FFN, DYNAMIC, BINS, TAPS, REG_FCS = 32, 4, 49, 16, 3  # of small_model_cfg; a bin sums 4 x 4 pixels


@pytest.fixture(params=[True, False], ids=['onednn', 'torch'])
def _product(request, monkeypatch):
    if request.param and not linear.onednn_works():
        pytest.skip('torch has no oneDNN')
    monkeypatch.setattr(linear, 'ONEDNN_IS_FASTER', request.param)


@pytest.fixture(scope='module')
def head():
    return build_detector(small_model_cfg(num_classes=CLASSES, num_stages=STAGES)).bbox_head.eval()


def flops_of(call, gradients):
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradients):
        call()
    return counter.get_total_flops()


def products_of_a_stage():
    """Multiplications and additions, 2 for each element of a product's sum."""
    boxes = IMAGES * BOXES
    attention = 4 * boxes * CHANNELS**2 + 2 * IMAGES * BOXES**2 * CHANNELS
    filters = boxes * CHANNELS * 2 * CHANNELS * DYNAMIC
    filtering = 2 * boxes * BINS * CHANNELS * DYNAMIC
    after = boxes * BINS * CHANNELS * CHANNELS
    ffn = 2 * boxes * CHANNELS * FFN
    time = IMAGES * 4 * CHANNELS * 2 * CHANNELS
    branches = boxes * CHANNELS * ((1 + REG_FCS) * CHANNELS + CLASSES + 4)
    return 2 * (attention + filters + filtering + after + ffn + time + branches)


def products_of_the_head():
    gathering = 2 * IMAGES * BOXES * BINS * TAPS * CHANNELS
    time_embedding = 2 * IMAGES * (CHANNELS + 4 * CHANNELS) * 4 * CHANNELS
    return time_embedding + STAGES * (gathering + products_of_a_stage())


@pytest.mark.usefixtures('_product')
@pytest.mark.parametrize('gradients', [True, False])
def test_a_stage_counts_as_by_hand(head, gradients):
    inputs = torch.randn(IMAGES * BOXES, BINS, CHANNELS), torch.randn(IMAGES, BOXES, CHANNELS), torch.randn(IMAGES, 64)
    counted = flops_of(lambda: head.stages[0](*inputs), gradients)
    assert counted == pytest.approx(products_of_a_stage(), rel=0.01)


@pytest.mark.usefixtures('_product')
@pytest.mark.parametrize('gradients', [True, False])
def test_the_whole_head_counts_as_by_hand(head, gradients):
    generator = torch.Generator().manual_seed(0)
    feats = tuple(torch.randn((IMAGES, CHANNELS, 64 // stride, 96 // stride)) for stride in (4, 8, 16, 32))
    boxes = random_boxes(IMAGES * BOXES, (64, 96), generator).view(IMAGES, BOXES, 4)
    counted = flops_of(lambda: head(feats, boxes, torch.tensor([3, 900])), gradients)
    assert counted == pytest.approx(products_of_the_head(), rel=0.01)


@pytest.mark.usefixtures('_product')
def test_the_backward_pass_of_a_linear_layer_counts_twice_the_forward_one():
    layer, inputs = torch.nn.Linear(8, 6), torch.randn(4, 8, requires_grad=True)

    def forward():
        with linear.fast_linear(inputs):
            return layer(inputs)

    assert flops_of(forward, True) == 2 * 4 * 8 * 6
    assert flops_of(lambda: forward().sum().backward(), True) == 3 * 2 * 4 * 8 * 6


def test_attention_on_a_cpu_counts_as_torch_counts_it_on_a_gpu():
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count
    query, key = torch.randn(2, 4, 30, 8, requires_grad=True), torch.randn(2, 4, 20, 8, requires_grad=True)
    shapes = query.shape, key.shape, key.shape
    forward = flops_of(lambda: F.scaled_dot_product_attention(query, key, key), True)
    both = flops_of(lambda: F.scaled_dot_product_attention(query, key, key).sum().backward(), True)
    if forward == both / 3:  # torch 2.1 has no fused one on a CPU, and keeps the scores
        assert forward == sdpa_flop_count(*shapes)
    else:
        assert (forward, both - forward) == (sdpa_flop_count(*shapes),
                                             sdpa_backward_flop_count(query.shape, *shapes))


def test_look_ups_without_weights_count_as_nothing_as_torch_has_it():
    layer = torch.nn.EmbeddingBag(10, 4)
    assert flops_of(lambda: layer(torch.zeros(3, 2, dtype=torch.long)), True) == 0


def test_a_formula_of_torch_s_own_stays():
    from torch.utils import flop_counter
    known = getattr(flop_counter, 'flop_registry', None) or flop_counter.flop_mapping
    operator = torch.ops.aten._native_multi_head_attention
    ours = known[operator]
    known[operator] = theirs = lambda *args, **kwargs: 1
    try:
        register_flop_formulas()
        assert known[operator] is theirs
    finally:
        known[operator] = ours
