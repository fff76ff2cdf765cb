"""Training boxes near the objects."""

import math

import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet_diffusion.operator_count import OperatorCount
from mmdet_diffusion.structures import PaddedObjects
from mmdet_diffusion.task_modules import DiffusionBoxSampler, ObjectJitter, repeat_objects
from mmdet_diffusion.task_modules.diffusion_box_sampler import PADDINGS

WHWH = torch.tensor([[400.0, 300.0, 400.0, 300.0]])
NUM_DRAWS = 20_000


def one_image(bboxes, labels, valid=None):
    valid = [True] * len(labels) if valid is None else valid
    return PaddedObjects(torch.tensor(bboxes)[None], torch.tensor(labels)[None], torch.tensor(valid)[None], WHWH)


def drawn(objects, number=NUM_DRAWS, **settings):
    """Boxes, shape (number, 4), by seed 0."""
    generator = torch.Generator().manual_seed(0)
    choice = torch.rand((1, number), generator=generator)
    noise = torch.randn((1, number, 4), generator=generator)
    return ObjectJitter(**settings)(objects, choice, noise)[0]


FOUR = [[10.0, 20.0, 50.0, 40.0], [100.0, 100.0, 180.0, 160.0], [200.0, 50.0, 220.0, 90.0],
        [300.0, 200.0, 380.0, 280.0]]


UNMOVED = dict(shift=0, log_scale=0, log_aspect=0)


def shares(boxes, objects):
    """How often each object is among boxes that were not moved."""
    distance = (boxes[:, None] - objects.bboxes[0]).abs().amax(-1)
    assert distance.min(-1).values.max() < 1e-3
    return distance.argmin(-1).bincount(minlength=objects.bboxes.size(1)) / len(boxes)


def test_each_class_of_an_image_has_its_equal_share():
    objects = one_image(FOUR, [0, 0, 2, 0])
    expected = torch.tensor([1 / 6, 1 / 6, 1 / 2, 1 / 6])
    torch.testing.assert_close(shares(drawn(objects, **UNMOVED), objects), expected, atol=0.02, rtol=0)


def test_what_is_no_object_is_never_drawn():
    """Places of padding, and of objects that were left out, have zeros and the first label."""
    objects = one_image([[0.0] * 4, *FOUR[:2], [0.0] * 4, FOUR[2], [0.0] * 4], [0, 0, 1, 0, 1, 0],
                        [False, True, True, False, True, False])
    expected = torch.tensor([0, 1 / 2, 1 / 4, 0, 1 / 4, 0])
    torch.testing.assert_close(shares(drawn(objects, **UNMOVED), objects), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize('choice', [0.0, 1.0])
def test_the_ends_of_the_range_draw_an_object(choice):
    objects = one_image([[0.0] * 4, *FOUR[:2], [0.0] * 4], [0, 0, 1, 0], [False, True, True, False])
    box = ObjectJitter()(objects, torch.tensor([[choice]]), torch.zeros(1, 1, 4))[0, 0]
    torch.testing.assert_close(box, torch.tensor(FOUR[int(choice)]))


def test_centres_move_evenly_by_up_to_so_many_sizes():
    boxes = drawn(one_image(FOUR[:1], [0]), shift=0.75)
    moves = ((boxes[:, :2] + boxes[:, 2:]) / 2 - torch.tensor([30.0, 30.0])) / torch.tensor([40.0, 20.0])
    assert moves.abs().max() <= 0.75 + 1e-5
    for axis in moves.unbind(-1):
        quarters = (axis / 0.75 * 2 + 2).long().clamp(0, 3).bincount(minlength=4) / NUM_DRAWS
        torch.testing.assert_close(quarters, torch.full((4, ), 0.25), atol=0.02, rtol=0)


def test_sizes_change_by_the_factors_of_the_law():
    boxes = drawn(one_image(FOUR[:1], [0]), log_scale=0.4, log_aspect=0.15)
    width, height = ((boxes[:, 2:] - boxes[:, :2]) / torch.tensor([40.0, 20.0])).log().unbind(-1)
    scale, aspect = (width + height) / 2, (width - height) / 2
    for values, deviation in ((scale, 0.4), (aspect, 0.15)):
        assert values.mean().abs() < 0.02
        assert values.std().item() == pytest.approx(deviation, rel=0.03)
    assert torch.corrcoef(torch.stack([scale, aspect]))[0, 1].abs() < 0.03


def test_small_and_large_objects_are_met_alike():
    """That is what it is for: noise of the diffusion leaves the large ones far better covered."""
    small, large = [100.0, 100.0, 110.0, 110.0], [100.0, 100.0, 300.0, 300.0]
    overlaps = [bbox_overlaps(drawn(one_image([box], [0])), torch.tensor([box])).mean() for box in (small, large)]
    torch.testing.assert_close(*overlaps)
    assert overlaps[0] > 0.2  # of boxes of the diffusion at its last step 0.001 and 0.19


@pytest.mark.parametrize('wrong, message', [
    (dict(share=0), 'share.*above 0 and at most 1, got 0'), (dict(share=1.1), 'share.*got 1.1'),
    (dict(until=0), 'until.*got 0'), (dict(until=2), 'until.*got 2'),
    (dict(share='half'), "share.*got 'half'"), (dict(share=True), 'share.*got True'),
    (dict(share=math.nan), 'share.*got nan'), (dict(shift=-1), 'shift.*at least 0, got -1'),
    (dict(log_scale=math.inf), 'log_scale.*got inf'), (dict(log_aspect=None), 'log_aspect.*None'),
])
def test_values_out_of_range_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        DiffusionBoxSampler(jitter=dict(type='ObjectJitter', **wrong))


# Among the boxes of a training step ----------------------------------------------------------------------------------


SOME = dict(type='ObjectJitter', share=0.3, until=0.4)


def noisy(objects, num_proposals, jitter=SOME, padding='gaussian', progress=0.0, seed=0):
    sampler = TASK_UTILS.build(dict(type='DiffusionBoxSampler', padding=padding, jitter=jitter))
    draws = sampler.draw_training(objects, num_proposals, torch.Generator().manual_seed(seed))
    return sampler.noisy_boxes(objects, draws, progress)


@pytest.mark.parametrize('padding', PADDINGS)
def test_it_takes_the_last_places_and_leaves_the_others_as_they_are(padding):
    objects = one_image(FOUR, [0, 0, 2, 0])
    boxes, without = noisy(objects, 20, padding=padding)[0], noisy(objects, 20, jitter=None, padding=padding)[0]
    assert torch.equal(boxes[:14], without[:14])
    assert (boxes[14:] != without[14:]).any(-1).all()
    assert bbox_overlaps(boxes[14:], objects.bboxes[0]).amax(-1).gt(0).all()
    assert len({tuple(box) for box in boxes[14:].tolist()}) == 6


@pytest.mark.parametrize('padding', PADDINGS)
def test_among_them_each_class_has_its_equal_share_whatever_the_padding(padding):
    objects = one_image(FOUR, [0, 0, 2, 0])
    unmoved = dict(type='ObjectJitter', share=1, **UNMOVED)
    boxes = noisy(objects, NUM_DRAWS, jitter=unmoved, padding=padding)[0, len(FOUR):]
    expected = torch.tensor([1 / 6, 1 / 6, 1 / 2, 1 / 6])
    torch.testing.assert_close(shares(boxes, objects), expected, atol=0.02, rtol=0)


def test_an_image_of_a_batch_is_as_that_image_alone():
    """One without objects, one with a hole among them, one with more than boxes."""
    generator = torch.Generator().manual_seed(0)
    bboxes = torch.rand((3, 20, 4), generator=generator) * 100
    bboxes[..., 2:] += bboxes[..., :2] + 5
    labels = torch.randint(3, (3, 20), generator=generator)
    valid = torch.zeros(3, 20, dtype=torch.bool)
    valid[1, [0, 2, 3]], valid[2] = True, True
    batch = PaddedObjects(bboxes * valid[..., None], labels * valid, valid, WHWH.expand(3, 4))
    sampler = DiffusionBoxSampler(jitter=dict(type='ObjectJitter'))
    draws = sampler.draw_training(batch, 10, generator)
    together = sampler.noisy_boxes(batch, draws, 0.0)
    for row in range(3):
        own = slice(row, row + 1)
        alone = sampler.noisy_boxes(PaddedObjects(*(field[own] for field in batch)),
                                    type(draws)(*(field[own] for field in draws)), 0.0)
        torch.testing.assert_close(together[own], alone)
    plain = sampler.noisy_boxes(batch, draws)
    assert (together != plain).any(-1).sum(-1).tolist() == [0, 5, 0]


def test_it_waits_for_no_value_of_a_gpu():
    """The meta device stands for one: any read of a tensor on it raises."""
    sampler = DiffusionBoxSampler(jitter=dict(type='ObjectJitter')).to('meta')
    objects = PaddedObjects(*(field.to('meta') for field in one_image(FOUR, [0, 0, 2, 0])))
    draws = sampler.draw_training(objects, 20)
    with OperatorCount('meta') as count:
        boxes = sampler.noisy_boxes(objects, draws, 0.0)
    assert not count.reads and boxes.shape == (1, 20, 4)


def test_it_needs_no_operator_without_a_deterministic_form():
    """Sums in the order of their elements have none on a GPU."""
    seen = []

    class Names(TorchDispatchMode):

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **kwargs or {})

    with Names():
        drawn(one_image(FOUR, [0, 0, 2, 0]), number=10)
    assert 'searchsorted' in seen and 'cumsum' not in seen


@pytest.mark.parametrize('num_proposals, kept', [(5, 4), (4, 4), (3, 3)])
def test_it_takes_no_place_of_an_object(num_proposals, kept):
    objects = one_image(FOUR, [0, 0, 2, 0])
    boxes, without = noisy(objects, num_proposals)[0], noisy(objects, num_proposals, jitter=None)[0]
    assert torch.equal(boxes[:kept], without[:kept])
    assert not torch.equal(boxes[kept:], without[kept:]) or kept == num_proposals


def test_an_image_without_objects_has_none():
    objects = one_image([[0.0] * 4, [0.0] * 4], [0, 0], [False, False])
    assert torch.equal(noisy(objects, 10), noisy(objects, 10, jitter=None))


def test_each_group_draws_its_own():
    boxes = noisy(repeat_objects(one_image(FOUR, [0, 0, 2, 0]), 3), 20)
    assert not torch.equal(boxes[0, 14:], boxes[1, 14:]) and not torch.equal(boxes[1, 14:], boxes[2, 14:])


@pytest.mark.parametrize('progress, number', [(0.0, 6), (0.1, 4), (0.2, 3), (0.39, 0), (0.4, 0), (0.7, 0), (1.0, 0)])
def test_it_falls_to_none_within_its_part_of_the_training(progress, number):
    objects = one_image(FOUR, [0, 0, 2, 0])
    changed = (noisy(objects, 20, progress=progress) != noisy(objects, 20, jitter=None)).any(-1)[0]
    assert changed.tolist() == [False] * (20 - number) + [True] * number
