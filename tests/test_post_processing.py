"""From stage outputs to detections."""

import importlib
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import batched_nms
from torch.overrides import TorchFunctionMode

from mmdet_diffusion import post_processing
from mmdet_diffusion.operator_count import MAKE_FROM_HOST_DATA
from mmdet_diffusion.post_processing import best_pairs, class_wise_nms, finish_image, merge_steps
from mmdet_diffusion.sampling_settings import SamplingSettings
from mmdet_diffusion.structures import Detections
from mmdet_diffusion.testing import random_boxes

CHECK = settings(deadline=None, derandomize=True, max_examples=150)
SEEDS = st.integers(0, 2**31)
NMS = dict(type='nms', iou_threshold=0.5)
FAR_BOX = torch.tensor([[2.0**22, 2.0**22, 2.0**22 + 8, 2.0**22 + 8]])  # makes offsets between classes too rough


# Best pairs -----------------------------------------------------------------------------------------------------------


def stage_outputs(num_images=3, num_proposals=12, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((num_images, num_proposals, num_classes), generator=generator),
            torch.rand((num_images, num_proposals, 4), generator=generator) * 100)


@pytest.mark.parametrize(('num_proposals', 'num_classes'), [(12, 4), (12, 1), (1, 4), (1, 1), (50, 80)])
def test_best_pairs_are_those_of_a_full_sort(num_proposals, num_classes):
    logits, bboxes = stage_outputs(3, num_proposals, num_classes)
    pairs = best_pairs(logits, bboxes)
    for image in range(3):
        order = sorted(((logits[image, n, c].item(), n, c) for n in range(num_proposals) for c in range(num_classes)),
                       reverse=True)[:num_proposals]
        expected = {(c, *bboxes[image, n].tolist()): torch.tensor(logit).sigmoid().item() for logit, n, c in order}
        got = {(label, *box): score for label, box, score in zip(
            *(values[image].tolist() for values in (pairs.labels, pairs.bboxes, pairs.scores)), strict=True)}
        assert got == pytest.approx(expected)


def test_best_pairs_of_an_image_do_not_depend_on_the_others():
    logits, bboxes = stage_outputs()
    batch = best_pairs(logits, bboxes)
    for i in range(3):
        alone = best_pairs(logits[i:i + 1], bboxes[i:i + 1])
        assert all(torch.equal(mine[i:i + 1], other) for mine, other in zip(batch, alone, strict=True))


def test_one_box_may_have_several_classes():
    pairs = best_pairs(torch.tensor([[[5.0, 4.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]), torch.rand(1, 3, 4))
    assert sorted(pairs.labels[0].tolist()) == [0, 1, 2]
    assert len({tuple(box) for box in pairs.bboxes[0].tolist()}) == 1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_logits_are_float32(dtype):
    logits, bboxes = stage_outputs()
    pairs = best_pairs(logits.to(dtype), bboxes)
    assert pairs.scores.dtype == pairs.bboxes.dtype == torch.float32 and pairs.labels.dtype == torch.int64
    assert set(pairs.scores.flatten().tolist()) <= set(logits.to(dtype).float().sigmoid().flatten().tolist())


# Ensemble -------------------------------------------------------------------------------------------------------------


def steps_of(*sizes):
    return [Detections(torch.full((2, size, 4), float(i)), torch.full((2, size), i / 10), torch.full((2, size), i))
            for i, size in enumerate(sizes)]


@pytest.mark.parametrize(('ensemble', 'labels'), [('all', [0, 0, 1, 2, 2, 2]), ('all_but_last', [0, 0, 1]),
                                                  ('last', [2, 2, 2])])
def test_the_steps_of_an_ensemble_are_joined_per_image(ensemble, labels):
    merged = merge_steps(steps_of(2, 1, 3), ensemble)
    assert merged.labels.tolist() == [labels, labels]
    assert torch.equal(merged.bboxes, merged.labels[..., None].expand(-1, -1, 4).float())
    assert torch.equal(merged.scores, merged.labels / 10)


@pytest.mark.parametrize('ensemble', ['all', 'all_but_last', 'last'])
def test_a_single_step_always_counts(ensemble):
    assert merge_steps(steps_of(4), ensemble).labels.shape == (2, 4)


# Suppression ----------------------------------------------------------------------------------------------------------


@contextmanager
def counted_calls():
    """Boxes of each call of mmcv's operators, those within its ``batched_nms`` as well."""
    module, sizes = importlib.import_module('mmcv.ops.nms'), []

    def counted(operator):
        return lambda boxes, *args, **kwargs: sizes.append(len(boxes)) or operator(boxes, *args, **kwargs)

    with mock.patch.multiple(module, nms=counted(module.nms), soft_nms=counted(module.soft_nms)):
        yield sizes


@pytest.fixture
def calls():
    with counted_calls() as sizes:
        yield sizes


def iou(box, other):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    overlap = max(width, 0) * max(height, 0)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return overlap / (areas - overlap) if areas > overlap else 0.0


def reference_nms(bboxes, scores, labels, threshold=0.5):
    """Kept indices by falling score; boxes of one class are compared, those of two never."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(labels[i] != labels[j] or iou(bboxes[i], bboxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


@st.composite
def detections(draw):
    """Boxes on a quarter-pixel grid (sums are exact), many of them overlapping, some at negative coordinates."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    number, num_classes = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    corner = torch.randint(0, 60, (number, 2), generator=generator) / 4
    size = torch.randint(1, 80, (number, 2), generator=generator) / 4
    bboxes = torch.cat([corner, corner + size], dim=-1) + draw(st.integers(-4000, 4000)) / 4
    scores = (torch.randperm(number, generator=generator) + 1) / (number + 1)
    return bboxes, scores, torch.randint(num_classes, (number, ), generator=generator)


@CHECK
@given(detections())
def test_suppression_equals_a_reference_class_by_class(case):
    with counted_calls() as calls:
        scores, kept = class_wise_nms(*case, NMS)
    assert kept.tolist() == reference_nms(*(values.tolist() for values in case))
    assert torch.equal(scores, case[1][kept])
    assert calls == [len(case[1])]


@CHECK
@given(detections())
def test_suppression_equals_the_reference_beside_a_box_far_away(case):
    bboxes, scores, labels = case
    case = torch.cat([bboxes, FAR_BOX]), torch.cat([scores, torch.zeros(1)]), torch.cat([labels, torch.tensor([3])])
    with counted_calls() as calls:
        kept_scores, kept = class_wise_nms(*case, NMS)
    assert kept.tolist() == reference_nms(*(values.tolist() for values in case))
    assert torch.equal(kept_scores, case[1][kept])
    assert sum(calls) == len(case[1]) and len(calls) == len(case[2].unique())


@pytest.mark.parametrize('shift', [0.0, -50.0, -1000.0, 1e5, -1e5])
@pytest.mark.parametrize('num_classes', [2, 80, 1203])
def test_equal_boxes_of_different_classes_all_stay(calls, shift, num_classes):
    bboxes = (torch.tensor([[1.0, 1.0, 49.0, 49.0]]) + shift).expand(num_classes, 4)
    scores = torch.linspace(1, 0.5, num_classes)
    assert class_wise_nms(bboxes, scores, torch.arange(num_classes), NMS)[1].tolist() == list(range(num_classes))
    assert calls == [num_classes]


@pytest.mark.parametrize('shift', [0.0, -50.0, -1000.0, 1e5, -1e5])
@pytest.mark.parametrize('label', [0, 1, 79, 1202])
def test_of_equal_boxes_of_one_class_the_best_stays(shift, label):
    bboxes = (torch.tensor([[1.0, 1.0, 49.0, 49.0]]) + shift).expand(3, 4)
    scores, kept = class_wise_nms(bboxes, torch.tensor([0.2, 0.9, 0.5]), torch.full((3, ), label), NMS)
    assert kept.tolist() == [1] and scores.tolist() == pytest.approx([0.9])


def test_neighbours_of_the_last_class_are_not_rounded_into_one():
    """Their IoU is 0.09; with an offset of 1.6 million, which leaves eighths of a pixel, they would be equal."""
    bboxes = torch.tensor([[10.0, 10.0, 10.1, 10.1], [10.06, 10.06, 10.16, 10.16], [0.0, 0.0, 1333.0, 800.0]])
    kept = class_wise_nms(bboxes, torch.tensor([0.9, 0.8, 0.7]), torch.full((3, ), 1202), NMS)[1]
    assert kept.tolist() == [0, 1, 2]


@pytest.mark.parametrize('num_classes', [1, 80, 365, 1203])
def test_all_classes_of_an_image_take_one_call(calls, num_classes):
    generator = torch.Generator().manual_seed(0)
    bboxes = random_boxes(2000, (800, 1333), generator)
    labels = torch.randint(num_classes, (2000, ), generator=generator)
    class_wise_nms(bboxes, torch.rand(2000, generator=generator), labels, NMS)
    assert calls == [2000]


def test_the_numbers_of_absent_classes_do_not_matter(calls):
    bboxes = random_boxes(3, (800, 1333), torch.Generator().manual_seed(0)) * 20
    class_wise_nms(bboxes, torch.rand(3), torch.tensor([0, 1_000_000, 2_000_000]), NMS)
    assert calls == [3]


def test_many_classes_stay_near_the_origin(monkeypatch):
    """The farther boxes are moved, the more of their digits are rounded away."""
    moved = []
    monkeypatch.setattr(post_processing, 'batched_nms', lambda boxes, *args, **kwargs: moved.append(boxes) or
                        batched_nms(boxes, *args, **kwargs))
    bboxes = random_boxes(2000, (800, 1333), torch.Generator().manual_seed(0)) - 100
    class_wise_nms(bboxes, torch.rand(2000), torch.arange(2000) % 80, NMS)
    cell = float(bboxes.max() - bboxes.min()) + 1
    assert 8 * cell < moved[0].max() <= 9 * cell
    assert moved[0][:, 1::2].max() > 8 * cell  # upwards as far as sideways


@pytest.mark.parametrize('seed', range(4))
def test_eighty_classes_at_any_coordinates_are_suppressed_as_class_by_class(seed):
    generator = torch.Generator().manual_seed(seed)
    bboxes = random_boxes(1000, (800, 1333), generator) - 200.7
    scores, labels = torch.rand(1000, generator=generator), torch.randint(80, (1000, ), generator=generator)
    alone = [(labels == label).nonzero()[:, 0] for label in range(80)]
    expected = {int(index) for members in alone for index in
                members[batched_nms(bboxes[members], scores[members], members, NMS, class_agnostic=True)[1]]}
    assert set(class_wise_nms(bboxes, scores, labels, NMS)[1].tolist()) == expected


@pytest.mark.parametrize(('farthest', 'num_calls'), [(1333.0, 1), (30_000.0, 13), (1e5, 203), (2e5, 203)])
def test_boxes_far_outside_the_image_take_more_calls_that_together_hold_all(calls, farthest, num_calls):
    bboxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(203, 1)
    bboxes[0] = farthest
    kept = class_wise_nms(bboxes, torch.linspace(1, 0.5, 203), torch.arange(203), NMS)[1]
    assert sum(calls) == 203 and len(calls) == num_calls
    assert kept.tolist() == list(range(203))


def beside_far_box(is_beside, bboxes, scores, labels):
    """The same detections alone or with the box that makes the classes be treated one by one, with the least score."""
    if not is_beside:
        return bboxes, scores, labels
    return torch.cat([bboxes, FAR_BOX]), torch.cat([scores, torch.full((1, ), 1e-3)]), torch.cat([labels, labels[:1]])


OVERLAPPING = (torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 9.0]]),
               torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize('far', [False, True])
def test_soft_nms_lowers_scores_within_a_class_alone(calls, far):
    nms = dict(type='soft_nms', iou_threshold=0.5, method='linear', min_score=0.0)
    scores, kept = class_wise_nms(*beside_far_box(far, *OVERLAPPING), nms)
    assert kept.tolist()[:3] == [0, 2, 1]
    assert scores.tolist()[:3] == pytest.approx([0.9, 0.7, 0.8 * (1 - 0.9)], rel=1e-4)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert sorted(calls) == ([1, 3] if far else [3])


@pytest.mark.parametrize('far', [False, True])
def test_class_agnostic_suppression_compares_all_boxes_in_one_call(calls, far):
    kept = class_wise_nms(*beside_far_box(far, *OVERLAPPING), dict(NMS, class_agnostic=True))[1]
    assert kept.tolist() == ([0, 3] if far else [0])
    assert calls == [3 + far]


@pytest.mark.parametrize('far', [False, True])
def test_class_agnostic_false_is_as_if_not_said(calls, far):
    case = beside_far_box(far, *OVERLAPPING)
    kept = class_wise_nms(*case, dict(NMS, class_agnostic=False))[1]
    assert len(calls) == 1 + far  # a call for each class
    assert kept.tolist() == class_wise_nms(*case, NMS)[1].tolist() == [0, 2] + [3] * far


@pytest.mark.parametrize('far', [False, True])
def test_max_num_of_nms_bounds_all_classes_together(calls, far):
    bboxes = torch.arange(8)[:, None] * 20.0 + torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    case = beside_far_box(far, bboxes, torch.linspace(0.9, 0.2, 8), torch.arange(8) % 2)
    assert class_wise_nms(*case, dict(NMS, max_num=3))[1].tolist() == [0, 1, 2]
    assert len(calls) == 1 + far


def grid_of_pairs(number):
    """Small boxes, every second one on top of the one before and of a lower score."""
    place = torch.arange(number) // 2
    corner = torch.stack([place % 100, place // 100], dim=-1) * 20.0
    return torch.cat([corner, corner + 10], dim=-1), torch.linspace(1, 0.5, number)


@pytest.mark.parametrize('far', [False, True])
def test_ten_thousand_boxes_of_a_class_are_suppressed_in_one_call(calls, far):
    bboxes, scores = grid_of_pairs(10_000)
    kept = class_wise_nms(*beside_far_box(far, bboxes, scores, torch.full((10_000, ), 1)), NMS)[1]
    assert kept.tolist() == list(range(0, 10_000, 2)) + [10_000] * far
    assert calls == [10_000 + far]


def test_class_agnostic_suppression_of_ten_thousand_boxes_compares_all_classes_in_one_call(calls):
    bboxes, scores = grid_of_pairs(10_000)
    kept = class_wise_nms(bboxes, scores, torch.arange(10_000) % 2, dict(NMS, class_agnostic=True))[1]
    assert kept.tolist() == list(range(0, 10_000, 2))
    assert calls == [10_000]


def test_the_boxes_given_stay_as_they_are():
    bboxes, scores, labels = (values.clone() for values in OVERLAPPING)
    class_wise_nms(bboxes - 100, scores, labels, NMS)
    class_wise_nms(bboxes, scores, labels, nms := dict(NMS))
    assert all(torch.equal(*pair) for pair in zip((bboxes, scores, labels), OVERLAPPING, strict=True))
    assert nms == NMS


# One image ------------------------------------------------------------------------------------------------------------

META = dict(img_shape=(100, 200), ori_shape=(50, 400), scale_factor=(0.5, 2.0))


def apart(number):
    """Boxes that do not touch, their indices as labels, in no order of score."""
    left = torch.arange(number) * 200.0 / number
    bboxes = torch.stack([left, torch.zeros(number), left + 10, torch.full((number, ), 20.0)], dim=-1)
    scores = (torch.arange(number) * 7 % number + 1) / (number + 1)
    return Detections(bboxes, scores, torch.arange(number))


def finish(detections, rescale=False, meta=META, **values):
    return finish_image(detections, meta, SamplingSettings(num_proposals=10, **dict(dict(nms=NMS), **values)), rescale)


@pytest.mark.parametrize('nms', [NMS, None])
def test_detections_come_by_falling_score_with_their_boxes_and_labels(nms):
    detections = apart(10)
    result = finish(detections, nms=nms)
    order = sorted(range(10), key=lambda i: -detections.scores[i])
    assert result.labels.tolist() == order and result.labels.dtype == torch.int64
    assert torch.equal(result.scores, detections.scores[order])
    assert torch.equal(result.bboxes, detections.bboxes[order])


@pytest.mark.parametrize('nms', [NMS, None])
def test_detections_at_or_below_the_score_threshold_are_dropped(nms):
    detections = apart(4)._replace(scores=torch.tensor([0.25, 0.5, 0.75, 0.5000001]))
    assert finish(detections, nms=nms, score_thr=0.5).labels.tolist() == [2, 3]
    assert len(finish(detections, nms=nms, score_thr=0.0)) == 4


def test_no_suppression_keeps_equal_boxes():
    detections = Detections(OVERLAPPING[0][:1].expand(3, 4), *OVERLAPPING[1:])
    assert len(finish(detections, nms=None)) == 3
    assert finish(detections).labels.tolist() == [0, 1]


@pytest.mark.parametrize('nms', [NMS, None])
@pytest.mark.parametrize('max_per_img', [1, 3, 10, 300])
def test_the_best_max_per_img_stay(max_per_img, nms):
    result = finish(apart(10), nms=nms, max_per_img=max_per_img)
    assert torch.equal(result.scores, apart(10).scores.sort(descending=True).values[:max_per_img])


@pytest.mark.parametrize('nms', [NMS, None])
def test_no_limit_keeps_the_last_one_too(nms):
    assert torch.equal(finish(apart(10), nms=nms, max_per_img=-1).scores, apart(10).scores.sort(descending=True).values)


@pytest.mark.parametrize('nms', [NMS, None])
def test_no_threshold_keeps_scores_of_nought_but_nothing_that_is_no_number(nms):
    detections = apart(4)._replace(scores=torch.tensor([0.0, 0.5, float('nan'), 1e-30]))
    assert finish(detections, nms=nms, score_thr=None).labels.tolist() == [1, 3, 0]


class FromNumbers(TorchFunctionMode):
    """Which functions made a tensor of numbers, for which a GPU would wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, '__name__', '')
        if name in MAKE_FROM_HOST_DATA:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('nms', [NMS, None])
def test_finishing_makes_no_tensor_of_numbers(nms):
    with FromNumbers() as made:
        assert len(finish(apart(10), rescale=True, nms=nms)) == 10
    assert made.seen == []


def test_boxes_are_clipped_to_the_image():
    bboxes = torch.tensor([[-50.0, -60.0, 30.0, 40.0], [150.0, 70.0, 250.0, 170.0], [-10.0, -10.0, 300.0, 300.0]])
    result = finish(Detections(bboxes, torch.tensor([0.9, 0.8, 0.7]), torch.arange(3)))
    assert result.bboxes.tolist() == [[0, 0, 30, 40], [150, 70, 200, 100], [0, 0, 200, 100]]


def test_boxes_outside_the_image_or_without_area_are_dropped():
    bboxes = torch.tensor([[-50.0, 10.0, -5.0, 40.0], [210.0, 10.0, 230.0, 40.0], [10.0, 10.0, 10.0, 40.0],
                           [10.0, 120.0, 30.0, 140.0], [10.0, 10.0, 30.0, 40.0]])
    assert finish(Detections(bboxes, torch.linspace(0.9, 0.5, 5), torch.arange(5))).labels.tolist() == [4]


def test_suppression_comes_before_clipping():
    """Within the image both boxes are the same."""
    bboxes = torch.tensor([[150.0, 10.0, 210.0, 40.0], [150.0, 10.0, 400.0, 40.0]])
    result = finish(Detections(bboxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0])))
    assert result.bboxes.tolist() == [[150, 10, 200, 40]] * 2


@pytest.mark.parametrize('rescale', [True, False])
def test_boxes_with_a_side_at_or_below_the_minimum_are_dropped(rescale):
    bboxes = torch.tensor([[0.0, 0.0, 8.0, 50.0], [50.0, 0.0, 100.0, 8.0], [100.0, 0.0, 108.5, 8.5],
                           [195.0, 0.0, 250.0, 50.0]])
    detections = Detections(bboxes, torch.linspace(0.9, 0.5, 4), torch.arange(4))
    assert finish(detections, rescale, min_bbox_size=8).labels.tolist() == [2]
    assert len(finish(detections, rescale)) == 4


def test_small_boxes_do_not_count_among_max_per_img():
    bboxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [50.0, 0.0, 100.0, 50.0]])
    detections = Detections(bboxes, torch.tensor([0.9, 0.8]), torch.arange(2))
    assert finish(detections, min_bbox_size=8, max_per_img=1).labels.tolist() == [1]


def test_rescaling_leads_to_the_original_image_and_its_absence_to_the_network_input():
    detections = Detections(torch.tensor([[20.0, 40.0, 260.0, 80.0]]), torch.tensor([0.9]), torch.tensor([2]))
    assert finish(detections, rescale=False).bboxes.tolist() == [[20, 40, 200, 80]]
    assert finish(detections, rescale=True).bboxes.tolist() == [[40, 20, 400, 40]]


def test_without_rescaling_no_scale_factor_is_needed():
    assert len(finish(apart(3), meta=dict(img_shape=(100, 200, 3)))) == 3


@pytest.mark.parametrize('rescale', [True, False])
@pytest.mark.parametrize('nms', [NMS, None, dict(type='soft_nms', iou_threshold=0.5)])
def test_no_detections_give_an_empty_result(nms, rescale):
    for detections in (apart(4)._replace(scores=torch.zeros(4)), Detections(*(values[:0] for values in apart(1)))):
        result = finish(detections, rescale, nms=nms)
        assert result.bboxes.shape == (0, 4) and result.scores.shape == result.labels.shape == (0, )


@pytest.mark.parametrize('nms', [NMS, None])
def test_boxes_and_scores_that_are_not_numbers_are_dropped(nms):
    detections = apart(4)
    detections.bboxes[0], detections.scores[1] = float('nan'), float('nan')
    assert sorted(finish(detections, nms=nms).labels.tolist()) == [2, 3]


def test_the_detections_given_stay_as_they_are():
    detections = apart(4)
    finish(detections, rescale=True)
    assert all(torch.equal(*pair) for pair in zip(detections, apart(4), strict=True))
