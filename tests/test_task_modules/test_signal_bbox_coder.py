"""Boxes between pixels and the signal frame."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet_diffusion.task_modules import SignalBBoxCoder
from mmdet_diffusion.testing import random_boxes

CHECK = settings(deadline=None, derandomize=True, max_examples=100)
SCALES = st.floats(0.1, 10)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))  # height, width
SEEDS = st.integers(0, 2**31)


def whwh_of(img_shape):
    return torch.tensor([img_shape[1], img_shape[0]] * 2, dtype=torch.float32)


@CHECK
@given(SCALES, SIZES, SEEDS)
def test_boxes_within_the_image_survive_the_round_trip(scale, img_shape, seed):
    whwh = whwh_of(img_shape)
    bboxes = random_boxes(20, (2000, 2000), torch.Generator().manual_seed(seed)) / 2000 * whwh
    coder = SignalBBoxCoder(scale)
    error = (coder.decode(coder.encode(bboxes, whwh), whwh) - bboxes).abs() / whwh
    assert error.max() < 2e-6


@CHECK
@given(SCALES, SIZES, SEEDS)
def test_signals_within_range_survive_the_round_trip(scale, img_shape, seed):
    signal = (torch.rand((20, 4), generator=torch.Generator().manual_seed(seed)) * 2 - 1) * scale
    coder, whwh = SignalBBoxCoder(scale), whwh_of(img_shape)
    error = (coder.encode(coder.decode(signal, whwh), whwh) - signal).abs() / scale
    assert error.max() < 4e-6


@CHECK
@given(SCALES, SIZES, SEEDS, st.floats(0, 1e6))
def test_any_boxes_give_a_signal_in_range(scale, img_shape, seed, spread):
    bboxes = torch.randn((50, 4), generator=torch.Generator().manual_seed(seed)) * spread
    signal = SignalBBoxCoder(scale).encode(bboxes, whwh_of(img_shape))
    assert signal.abs().max() <= torch.tensor(scale)


@CHECK
@given(SCALES, SIZES, SEEDS, st.floats(0, 1e6))
def test_any_signal_gives_boxes_in_order_and_outside_the_image_by_half_its_size_at_most(scale, img_shape, seed, spread):
    signal = torch.randn((50, 4), generator=torch.Generator().manual_seed(seed)) * spread
    whwh = whwh_of(img_shape)
    bboxes = SignalBBoxCoder(scale).decode(signal, whwh)
    assert (bboxes[:, 2:] >= bboxes[:, :2]).all()
    assert (bboxes >= -0.5 * whwh).all() and (bboxes <= 1.5 * whwh).all()


def test_signal_of_known_boxes():
    whwh = whwh_of((100, 200))
    bboxes = torch.tensor([[0.0, 0.0, 200.0, 100.0], [50.0, 25.0, 150.0, 75.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-2.0, -2.0, -2.0, -2.0]])
    torch.testing.assert_close(SignalBBoxCoder(2.0).encode(bboxes, whwh), expected)


def test_boxes_of_known_signals():
    whwh = whwh_of((100, 200))
    signal = torch.tensor([[0.0, 0.0, 2.0, 2.0], [2.0, -2.0, 0.0, -2.0], [-9.0, 9.0, 9.0, 9.0]])
    expected = torch.tensor([[0.0, 0.0, 200.0, 100.0], [150.0, 0.0, 250.0, 0.0], [-100.0, 50.0, 100.0, 150.0]])
    torch.testing.assert_close(SignalBBoxCoder(2.0).decode(signal, whwh), expected)


def test_the_scale_is_the_range_of_the_signal():
    cxcywh = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for scale in (0.5, 1.0, 2.0):
        expected = torch.tensor([-scale, -scale / 2, 0.0, scale])
        torch.testing.assert_close(SignalBBoxCoder(scale).normalized_to_signal(cxcywh), expected)


def test_normalised_boxes_outside_the_image_are_not_clamped_on_the_way_to_noise():
    signal = SignalBBoxCoder(2.0).normalized_to_signal(torch.tensor([1.5, -0.5, 0.5, 1.0]))
    torch.testing.assert_close(signal, torch.tensor([4.0, -4.0, 0.0, 2.0]))


def test_each_image_has_its_own_size():
    coder = SignalBBoxCoder(2.0)
    signal = torch.randn((2, 7, 4), generator=torch.Generator().manual_seed(0))
    whwh = torch.stack([whwh_of((100, 200)), whwh_of((333, 50))])
    batch = coder.decode(signal, whwh[:, None])
    for i in range(2):
        assert torch.equal(batch[i], coder.decode(signal[i], whwh[i]))
        assert torch.equal(coder.encode(batch, whwh[:, None])[i], coder.encode(batch[i], whwh[i]))


def test_both_ways_stay_float32():
    coder, whwh = SignalBBoxCoder(2.0), whwh_of((100, 200))
    assert coder.decode(torch.zeros(3, 4), whwh).dtype == torch.float32
    assert coder.encode(torch.zeros(3, 4), whwh).dtype == torch.float32


@pytest.mark.parametrize('wrong', [0, 0.0, -1.0, math.nan, True])
def test_a_scale_that_is_not_positive_is_refused(wrong):
    with pytest.raises(ValueError, match='signal_scale'):
        SignalBBoxCoder(wrong)
