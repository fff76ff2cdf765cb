"""Class targets of the criterion, and what it measures boxes in."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps

from mmdet_diffusion.losses.diffusiondet_criterion import LEAST_TARGET
from mmdet_diffusion.structures import StageOutputs
from mmdet_diffusion.task_modules import pad_objects
from mmdet_diffusion.testing import build_detector, data_sample, small_model_cfg

SHAPE = (64, 96)
VARIFOCAL = dict(type='VarifocalLoss', loss_weight=1.0)
FOCAL = dict(type='FocalLoss', use_sigmoid=True)
FEDERATED = dict(type='FederatedLoss', image_counts=[3, 2, 1], num_sampled_classes=2)


def criterion(**cfg):
    return MODELS.build(dict(type='DiffusionDetCriterion', assigner=dict(type='DynamicKAssigner'), loss_cls=VARIFOCAL,
                             loss_bbox=dict(type='L1Loss'), loss_iou=dict(type='GIoULoss')) | cfg)


def case():
    """One image with two objects and four queries of two stages: tight, loose, far from its object, unmatched."""
    gt_bboxes = torch.tensor([[10.0, 10, 30, 30], [40, 20, 80, 50]])
    objects = pad_objects([data_sample(gt_bboxes, torch.tensor([2, 0]), SHAPE)], 3)
    boxes = torch.tensor([[10.0, 10, 30, 31], [45, 20, 90, 60], [0, 40, 8, 60], [40, 20, 80, 50]])
    bboxes = torch.stack([boxes, boxes + 1])[:, None].requires_grad_()
    cls_scores = torch.randn((2, 1, 4, 3), generator=torch.Generator().manual_seed(0)).requires_grad_()
    return StageOutputs(cls_scores, bboxes), objects, torch.tensor([0, 1, 1, -1]).expand(2, 1, 4)


def targets_of(criterion, monkeypatch):
    seen, forward = [], criterion.loss_cls.forward
    monkeypatch.setattr(criterion.loss_cls, 'forward', lambda scores, target, **settings: (
        seen.append(target), forward(scores, target, **settings))[1])
    criterion.losses(*case())
    return seen[0]


def test_a_matched_query_is_to_give_the_iou_of_its_box(monkeypatch):
    target = targets_of(criterion(class_targets='iou'), monkeypatch)
    outputs, objects, _ = case()
    for stage in range(2):
        ious = bbox_overlaps(outputs.bboxes[stage, 0], objects.bboxes[0])
        assert 0.7 < ious[0, 0] < 1 and 0.4 < ious[1, 1] < 0.6 and ious[2, 1] == 0
        expected = torch.zeros(4, 3)
        expected[0, 2], expected[1, 0], expected[2, 0] = ious[0, 0], ious[1, 1], LEAST_TARGET
        assert torch.equal(target[stage], expected)


def test_one_hot_targets_are_of_the_paper(monkeypatch):
    target = targets_of(criterion(loss_cls=FOCAL), monkeypatch)
    assert target.tolist() == [[[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]]] * 2


def test_the_class_loss_moves_no_box():
    outputs, objects, gt_index = case()
    losses = criterion(class_targets='iou').losses(outputs, objects, gt_index)
    gradients = torch.autograd.grad(losses['loss_cls'] + losses['d0.loss_cls'], list(outputs), allow_unused=True)
    assert gradients[0].abs().max() > 0 and gradients[1] is None


def box_loss(box_unit, error, gt_bbox):
    """L1 loss of a query whose edges are all so many pixels right and below of its object's."""
    objects = pad_objects([data_sample(torch.tensor([gt_bbox]), torch.tensor([0]), SHAPE)], 3)
    bboxes = (torch.tensor([gt_bbox]) + error)[None, None].requires_grad_()
    outputs = StageOutputs(torch.zeros(1, 1, 1, 3), bboxes)
    loss = criterion(box_unit=box_unit).losses(outputs, objects, torch.zeros(1, 1, 1, dtype=torch.int64))['loss_bbox']
    return loss.item(), torch.autograd.grad(loss, bboxes)[0].abs().max().item()


def test_boxes_are_measured_in_images_or_in_objects():
    small, large = [10.0, 10, 20, 50], [0.0, 0, 20, 80]  # 10 x 40 pixels, and 20 x 80
    assert box_loss('image', 2, small)[0] == pytest.approx(2 * (2 / 96 + 2 / 64))
    assert box_loss('image', 4, large)[0] == pytest.approx(2 * box_loss('image', 2, small)[0])
    assert box_loss('object', 2, small)[0] == pytest.approx(4 * 2 / 20)
    assert box_loss('object', 4, large)[0] == pytest.approx(box_loss('object', 2, small)[0])


def test_an_object_below_a_pixel_has_no_huge_gradient():
    loss, steepest = box_loss('object', 2, [10.0, 10, 10.001, 10.001])
    assert loss == pytest.approx(8) and steepest == pytest.approx(1)


@pytest.mark.parametrize('cfg, words', [
    (dict(class_targets='giou'), "class_targets.*one_hot, iou, got 'giou'"),
    (dict(box_unit='pixel'), "box_unit.*image, object, got 'pixel'"),
    (dict(class_targets='iou', loss_cls=FOCAL), "FocalLoss.*type='VarifocalLoss'"),
    (dict(class_targets='iou', loss_cls=dict(FEDERATED, loss=FOCAL)), "FocalLoss.*type='VarifocalLoss'")])
def test_what_is_unknown_and_targets_that_the_loss_does_not_take_are_refused(cfg, words):
    with pytest.raises(ValueError, match=words):
        criterion(**cfg)


@pytest.mark.parametrize('loss_cls', [VARIFOCAL, dict(FEDERATED, loss=VARIFOCAL)])
@pytest.mark.parametrize('boxes', [torch.tensor([[10.0, 10, 60, 60]]), torch.zeros(0, 4)])
def test_a_model_learns_from_the_overlaps(loss_cls, boxes):
    cfg = small_model_cfg()
    cfg.bbox_head.criterion = dict(cfg.bbox_head.criterion, loss_cls=loss_cls, class_targets='iou')
    model = build_detector(cfg)
    losses = model.loss(torch.randn(1, 3, *SHAPE), [data_sample(boxes, torch.zeros(len(boxes)).long(), SHAPE)])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert model.bbox_head.stages[-1].fc_cls.weight.grad.abs().max() > 0
