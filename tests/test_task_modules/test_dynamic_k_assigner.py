"""One image's view of the matching."""

import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from mmdet_diffusion.task_modules import DynamicKAssigner, MatchCostWeights, match_queries
from mmdet_diffusion.testing import random_boxes, single_image_objects

IMG_SHAPE = (100, 200)


def scene(num_queries=20, num_objects=3, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = InstanceData(scores=torch.randn((num_queries, num_classes), generator=generator),
                           bboxes=random_boxes(num_queries, IMG_SHAPE, generator))
    objects = InstanceData(labels=torch.randint(num_classes, (num_objects, ), generator=generator),
                           bboxes=random_boxes(num_objects, IMG_SHAPE, generator))
    return queries, objects


def assign(queries, objects, **values):
    return DynamicKAssigner(**values).assign(queries, objects, dict(img_shape=IMG_SHAPE))


@pytest.mark.parametrize('seed', range(5))
def test_the_result_is_the_matching_of_the_batched_function(seed):
    queries, objects = scene(seed=seed)
    padded = single_image_objects(objects.bboxes, objects.labels, IMG_SHAPE)
    index = match_queries(queries.scores[None, None], queries.bboxes[None, None], padded, MatchCostWeights(), 5)[0, 0]
    result = assign(queries, objects)
    assert result.num_gts == 3
    assert torch.equal(result.gt_inds, index + 1)
    assert torch.equal(result.gt_inds, DynamicKAssigner().match(queries.scores[None, None], queries.bboxes[None, None],
                                                                padded)[0, 0] + 1)


def test_labels_are_those_of_the_objects_and_minus_one_elsewhere():
    queries, objects = scene()
    result = assign(queries, objects)
    assert (result.gt_inds > 0).any() and (result.gt_inds == 0).any()
    for query, gt in enumerate(result.gt_inds.tolist()):
        assert result.labels[query] == (objects.labels[gt - 1] if gt else -1)


def test_an_image_without_objects_leaves_every_query_without_one():
    queries, _ = scene()
    result = assign(queries, InstanceData(labels=torch.zeros(0).long(), bboxes=torch.zeros(0, 4)))
    assert result.num_gts == 0
    assert result.gt_inds.tolist() == [0] * 20 and result.gt_inds.dtype == torch.int64
    assert result.labels.tolist() == [-1] * 20


def test_horizontal_boxes_are_as_good_as_tensors():
    queries, objects = scene()
    expected = assign(queries, objects).gt_inds
    objects.bboxes = HorizontalBoxes(objects.bboxes)
    assert torch.equal(assign(queries, objects).gt_inds, expected)


def test_the_image_size_is_height_and_width():
    """A query displaced along x costs less in a wide image, one displaced along y less in a high one."""
    queries = InstanceData(scores=torch.zeros(2, 1), bboxes=torch.tensor([[14.0, 10, 34, 30], [10, 14, 30, 34]]))
    objects = InstanceData(labels=torch.zeros(1).long(), bboxes=torch.tensor([[10.0, 10, 30, 30]]))
    for img_shape, nearest in (((100, 200), 0), ((200, 100), 1)):
        gt_inds = DynamicKAssigner().assign(queries, objects, dict(img_shape=(*img_shape, 3))).gt_inds
        assert gt_inds.tolist() == [1 - nearest, nearest]


def test_half_precision_logits_are_matched_in_float32():
    queries, objects = scene()
    queries.scores = queries.scores.half()
    expected = assign(InstanceData(scores=queries.scores.float(), bboxes=queries.bboxes), objects)
    assert torch.equal(assign(queries, objects).gt_inds, expected.gt_inds)


def test_nothing_of_the_assignment_has_a_gradient():
    queries, objects = scene()
    queries.scores.requires_grad_()
    queries.bboxes.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
        result = assign(queries, objects)
    assert not saved  # no graph was built on the way either
    assert not result.gt_inds.requires_grad and not result.labels.requires_grad


def test_weights_of_the_config_reach_the_cost():
    """Of two queries one has the class, the other the box."""
    queries = InstanceData(scores=torch.tensor([[4.0], [-4.0]]),
                           bboxes=torch.tensor([[12.0, 10, 32, 30], [10, 10, 30, 30]]))
    objects = InstanceData(labels=torch.zeros(1).long(), bboxes=torch.tensor([[10.0, 10, 30, 30]]))
    values = dict(num_candidates=1)
    assert assign(queries, objects, cls_weight=10.0, **values).gt_inds.tolist() == [1, 0]
    assert assign(queries, objects, cls_weight=0.0, **values).gt_inds.tolist() == [0, 1]


def test_num_candidates_bounds_the_queries_of_an_object():
    queries = InstanceData(scores=torch.zeros(10, 1), bboxes=torch.tensor([[10.0, 10, 30, 30]]).expand(10, 4))
    objects = InstanceData(labels=torch.zeros(1).long(), bboxes=torch.tensor([[10.0, 10, 30, 30]]))
    for number in (1, 3, 5, 10):
        assert (assign(queries, objects, num_candidates=number).gt_inds > 0).sum() == number


def test_it_is_built_from_a_config():
    assert isinstance(TASK_UTILS.build(dict(type='DynamicKAssigner', cls_weight=2.0)), DynamicKAssigner)


@pytest.mark.parametrize('wrong', [dict(num_candidates=0), dict(center_radius=0.0), dict(center_radius=-1.0),
                                   dict(min_queries=0), dict(min_queries=6), dict(min_queries=1.5)])
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DynamicKAssigner(**wrong)
