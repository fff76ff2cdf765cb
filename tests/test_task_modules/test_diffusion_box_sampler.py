"""Noisy boxes for training, steps of sampling."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh

from mmdet_diffusion.structures import PaddedObjects
from mmdet_diffusion.task_modules import DiffusionBoxSampler, pad_objects
from mmdet_diffusion.testing import data_sample, random_boxes

PADDINGS = ('gaussian', 'uniform', 'full_image', 'repeat', 'start')
SHAPES = ((300, 400), (500, 250), (640, 640))  # height, width


def objects_of(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return pad_objects([data_sample(random_boxes(number, shape, generator), torch.zeros(number).long(), shape)
                        for number, shape in zip(counts, SHAPES, strict=False)], num_classes=1)


def draws_of(sampler, objects, num_proposals, seed=0):
    return sampler.draw_training(objects, num_proposals, torch.Generator().manual_seed(seed))


def clean_boxes(sampler, objects, draws):
    """Padded boxes, normalised cxcywh, to 2e-5: at step 0, without noise."""
    draws = draws._replace(timesteps=torch.zeros_like(draws.timesteps), noise=torch.zeros_like(draws.noise))
    return bbox_xyxy_to_cxcywh(sampler.noisy_boxes(objects, draws) / objects.img_whwh[:, None])


def pad(padding, counts, num_proposals, seed=0):
    sampler, objects = DiffusionBoxSampler(padding=padding), objects_of(counts)
    return objects, clean_boxes(sampler, objects, draws_of(sampler, objects, num_proposals, seed))


def objects_in_slots(objects, boxes):
    """Index of the object that each slot holds, -1 where it holds none; shape (B, N)."""
    cxcywh = bbox_xyxy_to_cxcywh(objects.bboxes / objects.img_whwh[:, None])
    distance = (boxes[:, :, None] - cxcywh[:, None]).abs().amax(-1).masked_fill(~objects.valid[:, None], math.inf)
    nearest = distance.min(-1)
    return torch.where(nearest.values < 5e-5, nearest.indices, -1)


def is_full_image(boxes):
    return ((boxes - torch.tensor([0.5, 0.5, 1.0, 1.0])).abs() < 5e-5).all(-1)


# Padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('padding', PADDINGS)
def test_objects_come_first_in_their_order(padding):
    slots = objects_in_slots(*pad(padding, (3, 7, 1), 10))
    for image, number in enumerate((3, 7, 1)):
        assert slots[image, :number].tolist() == list(range(number))


@pytest.mark.parametrize('padding', ['gaussian', 'uniform', 'full_image'])
def test_no_object_is_padding(padding):
    slots = objects_in_slots(*pad(padding, (3, 7, 1), 10))
    for image, number in enumerate((3, 7, 1)):
        assert (slots[image, number:] == -1).all()


def test_repeat_cycles_through_the_objects():
    slots = objects_in_slots(*pad('repeat', (3, 7, 1), 10))
    for image, number in enumerate((3, 7, 1)):
        assert slots[image].tolist() == [slot % number for slot in range(10)]


def test_full_image_pads_with_the_image():
    _, boxes = pad('full_image', (3, 0), 10)
    assert is_full_image(boxes).tolist() == [[False] * 3 + [True] * 7, [True] * 10]


@pytest.mark.parametrize('padding', PADDINGS)
def test_an_image_without_objects_starts_from_one_full_image_box(padding):
    _, boxes = pad(padding, (0, 2), 10)
    full = is_full_image(boxes[0]).tolist()
    assert full == [True] + [padding in ('full_image', 'repeat')] * 9


def padding_draws(padding, value=None):
    """A sampler's boxes from 20000 draws on an image without objects, and these draws."""
    sampler, objects = DiffusionBoxSampler(padding=padding), objects_of((0, ))
    draws = draws_of(sampler, objects, 20_001)
    if value is not None:
        draws = draws._replace(padding=torch.full_like(draws.padding, value))
    return clean_boxes(sampler, objects, draws)[0, 1:], draws.padding[0, 1:]


def test_gaussian_padding_has_mean_one_half_and_deviation_one_sixth():
    boxes, _ = padding_draws('gaussian')
    assert ((boxes.mean(0) - 0.5).abs() < 0.005).all()
    assert ((boxes.std(0) - 1 / 6).abs() < 0.004).all()
    assert (torch.corrcoef(boxes.T) - torch.eye(4)).abs().max() < 0.04


def test_uniform_padding_is_spread_over_0_to_1():
    boxes, _ = padding_draws('uniform')
    assert ((boxes.mean(0) - 0.5).abs() < 0.01).all()
    assert ((boxes.std(0) - math.sqrt(1 / 12)).abs() < 0.01).all()
    assert boxes.min() >= 0 and boxes.max() <= 1


@pytest.mark.parametrize('padding', ['gaussian', 'uniform'])
def test_padding_boxes_are_the_draws_with_a_size_of_at_least_1e_4(padding):
    boxes, drawn = padding_draws(padding)
    expected = drawn / 6 + 0.5 if padding == 'gaussian' else drawn.clone()
    expected[:, 2:].clamp_(min=1e-4)
    torch.testing.assert_close(boxes, expected.clamp(0, 1), rtol=0, atol=3e-5)


@pytest.mark.parametrize(('padding', 'value'), [('gaussian', -100.0), ('uniform', 0.0)])
def test_the_smallest_padding_box_keeps_an_area(padding, value):
    boxes, _ = padding_draws(padding, value)
    assert (boxes[:, 2:] > 0.9e-4).all() and (boxes[:, 2:] < 1.3e-4).all()


@pytest.mark.parametrize('padding', PADDINGS)
def test_more_objects_than_room_leave_a_subset_without_repetition(padding):
    objects, boxes = pad(padding, (9, 2), 5)
    slots = objects_in_slots(objects, boxes)
    assert (slots[0] >= 0).all() and len(set(slots[0].tolist())) == 5
    assert slots[1, :2].tolist() == [0, 1]


def test_the_subset_is_random_and_gives_every_object_its_chance():
    chosen = [tuple(objects_in_slots(*pad('gaussian', (9, ), 5, seed))[0].tolist()) for seed in range(40)]
    assert len({frozenset(subset) for subset in chosen}) > 20
    counts = [sum(index in subset for subset in chosen) for index in range(9)]
    assert min(counts) > 10 and max(counts) < 36  # 22 on average


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('count', [0, 1, 4])
def test_one_proposal_holds_one_object_or_the_image(padding, count):
    objects, boxes = pad(padding, (count, ), 1)
    assert boxes.shape == (1, 1, 4)
    assert is_full_image(boxes).item() if count == 0 else objects_in_slots(objects, boxes)[0, 0] >= 0


@pytest.mark.parametrize('padding', PADDINGS)
def test_as_many_objects_as_proposals_all_stay(padding):
    assert objects_in_slots(*pad(padding, (6, ), 6))[0].tolist() == list(range(6))


@pytest.mark.parametrize('num_proposals', [2, 8])
def test_slots_that_are_not_valid_give_no_box(num_proposals):
    whole = objects_of((6, ))
    valid = torch.tensor([[False, True, False, True, True, False]])
    objects = whole._replace(valid=valid, bboxes=whole.bboxes.masked_fill(~valid[..., None], 0))
    sampler = DiffusionBoxSampler(padding='full_image')
    slots = objects_in_slots(objects, clean_boxes(sampler, objects, draws_of(sampler, objects, num_proposals)))[0]
    if num_proposals == 8:
        assert slots.tolist() == [1, 3, 4] + [-1] * 5
    else:
        assert len(set(slots.tolist())) == 2 and set(slots.tolist()) <= {1, 3, 4}


# Noise ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scale', [1.0, 2.0])
@pytest.mark.parametrize('t', [0, 300, 700, 999])
def test_noisy_boxes_are_those_of_the_forward_process_at_t(t, scale):
    sampler, objects = DiffusionBoxSampler(padding='repeat', signal_scale=scale), objects_of((4, 2))
    draws = draws_of(sampler, objects, 30)._replace(timesteps=torch.tensor([t, 10]))
    cxcywh = bbox_xyxy_to_cxcywh(objects.bboxes[0] / objects.img_whwh[0]).double()[torch.arange(30) % 4]
    share = sampler.schedule.signal_share(t)
    x_t = math.sqrt(share) * (cxcywh * 2 - 1) * scale + math.sqrt(1 - share) * draws.noise[0].double()
    expected = bbox_cxcywh_to_xyxy((x_t.clamp(-scale, scale) / scale + 1) / 2) * objects.img_whwh[0]
    torch.testing.assert_close(sampler.noisy_boxes(objects, draws)[0].double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize('padding', PADDINGS)
def test_noisy_boxes_are_float32_in_order_and_within_reach_of_the_image(padding):
    sampler, objects = DiffusionBoxSampler(padding=padding), objects_of((3, 0, 20))
    bboxes = sampler.noisy_boxes(objects, draws_of(sampler, objects, 10))
    assert bboxes.dtype == torch.float32 and bboxes.shape == (3, 10, 4)
    assert (bboxes[..., 2:] >= bboxes[..., :2]).all()
    whwh = objects.img_whwh[:, None]
    assert (bboxes >= -0.5 * whwh).all() and (bboxes <= 1.5 * whwh).all()


@pytest.mark.parametrize('padding', PADDINGS)
def test_draws_have_the_types_and_shapes_of_the_contract(padding):
    draws = draws_of(DiffusionBoxSampler(padding=padding), objects_of((3, 0, 20)), 10)
    assert draws.timesteps.shape == (3, ) and draws.timesteps.dtype == torch.int64
    assert draws.timesteps.device.type == 'cpu'
    assert [tuple(value.shape) for value in draws[1:]] == [(3, 10, 4), (3, 10, 4), (3, 20)]
    assert {value.dtype for value in draws[1:]} == {torch.float32}


def test_steps_are_drawn_evenly_from_all_there_are():
    sampler, objects = DiffusionBoxSampler(num_train_timesteps=5), objects_of((1, 1, 1))
    drawn = torch.cat([draws_of(sampler, objects, 1, seed).timesteps for seed in range(200)])
    counts = drawn.bincount(minlength=5)
    assert len(counts) == 5 and counts.min() > 80 and counts.max() < 160


def test_every_image_draws_its_own_step_and_noise():
    sampler, objects = DiffusionBoxSampler(), objects_of((2, 2, 2))
    draws = draws_of(sampler, objects, 10)
    assert len(set(draws.timesteps.tolist())) == 3
    assert not torch.equal(draws.noise[0], draws.noise[1]) and not torch.equal(draws.padding[0], draws.padding[1])
    assert not torch.equal(draws.noise, draws.padding)


@pytest.mark.parametrize('padding', PADDINGS)
def test_the_same_draws_give_the_same_boxes(padding):
    sampler, objects = DiffusionBoxSampler(padding=padding), objects_of((3, 0, 20))
    first, second, other = (draws_of(sampler, objects, 10, seed) for seed in (0, 0, 1))
    assert torch.equal(sampler.noisy_boxes(objects, first), sampler.noisy_boxes(objects, second))
    assert not torch.equal(sampler.noisy_boxes(objects, first), sampler.noisy_boxes(objects, other))


def test_draws_from_a_generator_leave_the_global_one_alone():
    before = torch.get_rng_state()
    draws_of(DiffusionBoxSampler(), objects_of((2, )), 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('padding', PADDINGS)
def test_a_generator_of_another_device_draws_the_steps_too(monkeypatch, padding):
    """As one of a GPU, which no build for CPUs can make; torch's factories give what they are asked for on the host."""
    objects = PaddedObjects(*(value.to('meta') for value in objects_of((3, 0))))
    generator, asked = SimpleNamespace(device=torch.device('meta')), []

    def draw(factory, *args, device, generator):
        asked.append((torch.device(device), generator))
        return factory(*args)

    for factory in (torch.rand, torch.randn, torch.randint):
        monkeypatch.setattr(torch, factory.__name__, partial(draw, factory))
    draws = DiffusionBoxSampler(padding=padding).draw_training(objects, 10, generator)
    assert asked == [(generator.device, generator)] * len(draws)
    assert draws.timesteps.device.type == 'cpu' and draws.timesteps.shape == (2, )


def test_draws_without_a_generator_follow_the_global_one():
    sampler, objects = DiffusionBoxSampler(), objects_of((2, ))
    torch.manual_seed(3)
    first, second = (sampler.draw_training(objects, 10) for _ in range(2))
    torch.manual_seed(3)
    again = sampler.draw_training(objects, 10)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first.noise, second.noise)


@pytest.mark.parametrize('padding', PADDINGS)
def test_an_image_in_a_batch_is_as_the_image_alone(padding):
    sampler, objects = DiffusionBoxSampler(padding=padding), objects_of((3, 0, 20))
    draws = draws_of(sampler, objects, 10)
    batch = sampler.noisy_boxes(objects, draws)
    for i, width in enumerate((3, 1, 20)):
        alone = PaddedObjects(objects.bboxes[i:i + 1, :width], objects.labels[i:i + 1, :width],
                              objects.valid[i:i + 1, :width], objects.img_whwh[i:i + 1])
        own_draws = draws._replace(timesteps=draws.timesteps[i:i + 1], noise=draws.noise[i:i + 1],
                                   padding=draws.padding[i:i + 1], order=draws.order[i:i + 1, :width])
        assert torch.equal(sampler.noisy_boxes(alone, own_draws)[0], batch[i])


# Sampling -------------------------------------------------------------------------------------------------------------

WHWH = torch.tensor([[400.0, 300.0, 400.0, 300.0], [250.0, 500.0, 250.0, 500.0]])


def signals(seed=0, spread=1.0):
    return torch.randn((2, 10, 4), generator=torch.Generator().manual_seed(seed)) * spread


def boxes_in_images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([random_boxes(10, (int(height), int(width)), generator) for width, height in WHWH[:, :2]])


def test_decoding_clamps_the_signal_first():
    sampler, x_t = DiffusionBoxSampler(), signals(spread=5.0)
    assert x_t.abs().max() > 4
    bboxes = sampler.decode(x_t, WHWH)
    assert torch.equal(bboxes, sampler.decode(x_t.clamp(-2, 2), WHWH))
    assert bboxes.dtype == torch.float32
    assert (bboxes >= -0.5 * WHWH[:, None]).all() and (bboxes <= 1.5 * WHWH[:, None]).all()


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('time_pair', [(999, 499), (499, -1), (999, 749), (3, 2)])
def test_a_step_is_ddim_towards_the_predicted_boxes_from_x_t_unclamped(time_pair, eta):
    sampler, x_t, bboxes, noise = DiffusionBoxSampler(), signals(spread=3.0), boxes_in_images(), signals(seed=1)
    now, following = (sampler.schedule.signal_share(t) for t in time_pair)
    x_start = (bbox_xyxy_to_cxcywh(bboxes.double() / WHWH[:, None]) * 2 - 1) * 2
    estimate = (x_t.double() - math.sqrt(now) * x_start) / math.sqrt(1 - now)
    variance = eta**2 * (1 - following) / (1 - now) * (1 - now / following)
    expected = (math.sqrt(following) * x_start + math.sqrt(max(1 - following - variance, 0)) * estimate
                + math.sqrt(variance) * noise.double())
    x_next = sampler.denoise(x_t, bboxes, WHWH, time_pair, eta, noise)
    assert x_next.dtype == torch.float32
    torch.testing.assert_close(x_next.double(), expected, rtol=0, atol=2e-5)


def test_predicted_boxes_far_outside_are_clamped_to_the_signal():
    sampler, bboxes = DiffusionBoxSampler(), torch.tensor([-1e5, -1e5, 1e5, 1e5]).expand(2, 10, 4)
    x_next = sampler.denoise(signals(), bboxes, WHWH, (499, -1), 1.0, signals(seed=1))
    assert torch.equal(x_next, torch.tensor([-2.0, -2.0, 2.0, 2.0]).expand(2, 10, 4))


def test_the_last_step_ends_at_the_predicted_boxes():
    sampler, bboxes = DiffusionBoxSampler(), boxes_in_images()
    x_next = sampler.denoise(signals(), bboxes, WHWH, (249, -1), 1.0, signals(seed=1))
    torch.testing.assert_close(sampler.decode(x_next, WHWH), bboxes, rtol=0, atol=1e-3)


def test_renewal_replaces_boxes_at_or_below_the_threshold_in_their_place():
    x_t, fresh = signals(), signals(seed=1)
    scores = torch.tensor([[0.5, 0.4, 0.6, 0.0, 1.0, 0.5000001, 0.9, 0.1, 0.2, 0.51], [0.9] * 10])
    renewed = DiffusionBoxSampler.renew(x_t, scores, 0.5, fresh)
    for image in range(2):
        for box in range(10):
            source = x_t if scores[image, box] > 0.5 else fresh
            assert torch.equal(renewed[image, box], source[image, box])
    assert renewed.dtype == torch.float32


def test_renewal_of_an_image_depends_on_its_own_scores_alone():
    x_t, fresh = signals(), signals(seed=1)
    scores = torch.stack([torch.ones(10), torch.zeros(10)])
    renewed = DiffusionBoxSampler.renew(x_t, scores, 0.5, fresh)
    assert torch.equal(renewed[0], x_t[0]) and torch.equal(renewed[1], fresh[1])


# Construction ---------------------------------------------------------------------------------------------------------


def test_an_unknown_padding_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="gaussian, uniform, full_image, repeat, start, got 'concat'"):
        DiffusionBoxSampler(padding='concat')


@pytest.mark.parametrize(('wrong', 'name'), [(dict(num_train_timesteps=0), 'num_train_timesteps'),
                                             (dict(signal_scale=0.0), 'signal_scale')])
def test_values_out_of_range_are_refused_by_name(wrong, name):
    with pytest.raises(ValueError, match=name):
        DiffusionBoxSampler(**wrong)


def test_it_is_built_from_a_config():
    values = dict(num_train_timesteps=7, signal_scale=1.0, padding='repeat')
    sampler = TASK_UTILS.build(dict(type='DiffusionBoxSampler', **values))
    assert sampler.num_train_timesteps == 7 and sampler.coder.signal_scale == 1.0 and sampler.padding == 'repeat'
