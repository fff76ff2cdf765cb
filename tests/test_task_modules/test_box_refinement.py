"""Boxes moved by deltas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet_diffusion.task_modules import refine_boxes
from mmdet_diffusion.testing import random_boxes

CHECK = settings(deadline=None, derandomize=True, max_examples=100)
SEEDS = st.integers(0, 2**31)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def refined_by_formula(box, delta):
    """Girshick et al. 2014, with weights (2, 2, 1, 1) and growth of at most 100000 / 16, in Python's floats."""
    x1, y1, x2, y2 = box
    dx, dy, dw, dh = delta
    width, height = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + dx / 2 * width, (y1 + y2) / 2 + dy / 2 * height
    width *= min(math.exp(min(dw, 50)), 100_000 / 16)
    height *= min(math.exp(min(dh, 50)), 100_000 / 16)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@CHECK
@given(SEEDS)
def test_zero_deltas_leave_boxes_where_they_are(seed):
    bboxes = random_boxes(50, (1333, 800), torch.Generator().manual_seed(seed)) - 200
    torch.testing.assert_close(refine_boxes(bboxes, torch.zeros(50, 4)), bboxes, rtol=0, atol=2e-4)


@CHECK
@given(SEEDS, st.floats(0.01, 2))
def test_boxes_move_as_the_formula_says(seed, spread):
    bboxes = random_boxes(20, (800, 1333), torch.Generator().manual_seed(seed))
    deltas = (normal(seed, 20, 4) * spread).clamp(-3, 3)  # stays below the bound of sizes
    expected = [refined_by_formula(box, delta)
                for box, delta in zip(bboxes.tolist(), deltas.tolist(), strict=True)]
    torch.testing.assert_close(refine_boxes(bboxes, deltas), torch.tensor(expected), rtol=1e-5, atol=1e-2)


def test_growth_ends_at_a_hundred_thousand_sixteenths():
    bboxes = torch.tensor([[0.0, 0.0, 2.0, 4.0]])
    sizes = [refine_boxes(bboxes, torch.tensor([[0.0, 0.0, delta, delta]]))[0].diff()[1].item()
             for delta in (math.log(6250), 9.0, 50.0, 1e30)]
    assert sizes[1:] == [sizes[0]] * 3
    x1, y1, x2, y2 = refine_boxes(bboxes, torch.tensor([[0.0, 0.0, 50.0, 50.0]]))[0].tolist()
    assert (x2 - x1, y2 - y1) == pytest.approx((2 * 6250, 4 * 6250), rel=1e-5)


def test_shrinking_has_no_bound_and_leaves_no_area():
    bboxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert refine_boxes(bboxes, torch.tensor([[0.0, 0.0, -1e4, -1e4]])).tolist() == [[20.0, 40.0, 20.0, 40.0]]


@pytest.mark.parametrize('value', [5.0, 100.0, 65504.0, 1e30])
@pytest.mark.parametrize('signs', [(1, 1, 1, 1), (-1, 1, 1, 1), (1, -1, -1, 1), (-1, -1, -1, -1)])
def test_extreme_deltas_stay_finite_and_in_order_over_six_stages(value, signs):
    bboxes = torch.cat([random_boxes(50, (800, 1333), torch.Generator().manual_seed(0)), torch.zeros(1, 4)])
    for _ in range(6):
        bboxes = refine_boxes(bboxes, value * torch.tensor([signs], dtype=torch.float32).expand(51, 4))
        assert bboxes.isfinite().all()
        assert (bboxes[:, 2:] >= bboxes[:, :2]).all()
    assert bboxes.abs().max() <= 150_000


@CHECK
@given(SEEDS, st.floats(0.1, 100))
def test_random_deltas_stay_finite_and_in_order_over_six_stages(seed, spread):
    bboxes = random_boxes(50, (800, 1333), torch.Generator().manual_seed(seed))
    for stage in range(6):
        bboxes = refine_boxes(bboxes, normal(seed + stage, 50, 4) * spread)
        assert bboxes.isfinite().all()
        assert (bboxes[:, 2:] >= bboxes[:, :2]).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_deltas_move_float32_boxes(dtype):
    bboxes = random_boxes(200, (800, 1333), torch.Generator().manual_seed(0))
    deltas = normal(1, 200, 4).to(dtype)
    refined = refine_boxes(bboxes, deltas)
    assert refined.dtype == torch.float32
    assert torch.equal(refined, refine_boxes(bboxes, deltas.float()))


def test_boxes_beyond_1024_pixels_are_not_rounded_to_whole_pixels():
    bboxes = torch.tensor([[1300.25, 700.25, 1310.5, 710.5]])
    torch.testing.assert_close(refine_boxes(bboxes, torch.zeros(1, 4, dtype=torch.float16)), bboxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize('column', range(4))
def test_each_delta_has_a_gradient(column):
    deltas = torch.zeros(1, 4, requires_grad=True)
    gradient, = torch.autograd.grad(refine_boxes(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), deltas)[0, 2:].sum(), deltas)
    expected = (0.5 * 20, 0.5 * 40, 0.5 * 20, 0.5 * 40)  # d(x2 + y2) / d(dx, dy, dw, dh)
    assert gradient[0, column].item() == pytest.approx(expected[column])


def test_boxes_of_any_leading_shape_are_moved_one_by_one():
    bboxes = random_boxes(24, (800, 1333), torch.Generator().manual_seed(0))
    deltas = normal(0, 24, 4)
    flat = refine_boxes(bboxes, deltas)
    assert torch.equal(refine_boxes(bboxes.view(2, 3, 4, 4), deltas.view(2, 3, 4, 4)).flatten(0, 2), flat)
    assert all(torch.equal(refine_boxes(bboxes[i:i + 1], deltas[i:i + 1])[0], flat[i]) for i in range(24))
