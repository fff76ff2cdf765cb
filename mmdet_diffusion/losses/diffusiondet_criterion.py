"""Set prediction loss of all refinement stages. arXiv:2211.09788, Sec. 3.3 and Appendix."""

import torch
from mmdet.models.losses import FocalLoss
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import ConfigType
from torch import Tensor, nn

from ..structures import PaddedObjects, StageOutputs

CLASS_TARGETS = ('one_hot', 'iou')
BOX_UNITS = ('image', 'object')
SMALLEST_AREA = 1.0  # of the unit, in square pixels of the network input: below it an error is one of rounding
LEAST_TARGET = 1e-3  # of a matched query whose box does not meet the object yet; none at all is the background's


@MODELS.register_module()
class DiffusionDetCriterion(nn.Module):
    """Matches every stage's outputs to the objects and sums class, L1 and GIoU losses.

    Each stage's sums are divided by the number of its matched queries on this process, at least 1. Everything is
    computed in float32, under autocast too.

    Args:
        assigner (ConfigType): such as ``DynamicKAssigner``; needs ``match(cls_scores, bboxes, objects)``.
        loss_cls (ConfigType): of the class logits against the class targets, both of shape (S, B * N, C): a
            ``FocalLoss``, ``CrossEntropyLoss`` with ``use_sigmoid=True``, ``VarifocalLoss``, or ``FederatedLoss``
            around one of them.
        loss_bbox (ConfigType): of xyxy in ``box_unit``.
        loss_iou (ConfigType): of xyxy in pixels.
        class_targets (str): what a matched query is to give as the probability of its object's class: ``one_hot`` 1,
            as in the paper, ``iou`` the IoU of its box with the object, so that suppression keeps the tightest box
            (Zhang et al. 2021, VarifocalNet, arXiv:2008.13367, Sec. 3.1); for ``VarifocalLoss``.
        box_unit (str): what ``loss_bbox`` measures boxes in: ``image`` its width and height, as in the paper;
            ``object`` the square root of the object's area, so that an error of a tenth of its size costs a small
            object what it costs a large one. A ``loss_weight`` of 1.0 is then about what 5.0 is in images.

    Raises:
        ValueError: if the class loss is a softmax over classes, which has no place for queries without an object, or
            there are no such class targets or box unit, or the class loss takes no other targets than 0 and 1.
    """

    def __init__(self, *, assigner: ConfigType, loss_cls: ConfigType, loss_bbox: ConfigType,
                 loss_iou: ConfigType, class_targets: str = 'one_hot', box_unit: str = 'image') -> None:
        super().__init__()
        for name, value, known in (('class_targets', class_targets, CLASS_TARGETS), ('box_unit', box_unit, BOX_UNITS)):
            if value not in known:
                raise ValueError(f'{name} of DiffusionDetCriterion must be one of {", ".join(known)}, got {value!r}')
        self.class_targets, self.box_unit = class_targets, box_unit
        self.assigner = TASK_UTILS.build(assigner)
        self.loss_cls = MODELS.build(loss_cls)
        inner = getattr(self.loss_cls, 'loss', self.loss_cls)
        if getattr(inner, 'use_sigmoid', True) is False:
            raise ValueError(f'loss_cls of DiffusionDetCriterion is a {type(inner).__name__} with use_sigmoid=False; '
                             'the head has a logit for each class and none for the background: set use_sigmoid=True')
        if class_targets == 'iou' and isinstance(inner, FocalLoss):
            raise ValueError("class_targets='iou' of DiffusionDetCriterion sets targets between 0 and 1, and loss_cls "
                             'is a FocalLoss, which is not least where the probability is the target: take '
                             "loss_cls=dict(_delete_=True, type='VarifocalLoss', loss_weight=1.0)")
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)

    def forward(self, outputs: StageOutputs, objects: PaddedObjects) -> dict[str, Tensor]:
        """Match and compute the losses.

        Args:
            outputs (StageOutputs): of all stages.
            objects (PaddedObjects): the batch's objects.

        Returns:
            dict[str, Tensor]: ``loss_cls``, ``loss_bbox``, ``loss_iou`` of the last stage, and the same with
            ``d{stage}.`` in front of the others; float32 scalars.
        """
        with torch.autocast(outputs.bboxes.device.type, enabled=False):
            outputs = StageOutputs(outputs.cls_scores.float(), outputs.bboxes.float())
            gt_index = self.assigner.match(*outputs, objects)
            return self.losses(outputs, objects, gt_index)

    def losses(self, outputs: StageOutputs, objects: PaddedObjects, gt_index: Tensor) -> dict[str, Tensor]:
        """Losses of given matches.

        Args:
            outputs (StageOutputs): of all stages, float32.
            objects (PaddedObjects): the batch's objects.
            gt_index (Tensor): object of each query or -1, int64, shape (S, B, N).

        Returns:
            dict[str, Tensor]: as :meth:`forward`.
        """
        matched, index = gt_index >= 0, gt_index.clamp(min=0)
        num_matched = matched.flatten(1).sum(1).clamp(min=1)
        labels = objects.labels.expand(len(index), -1, -1).gather(2, index)
        bboxes, targets = self._box_pairs(outputs.bboxes, objects.bboxes, index, matched)
        by_name = dict(
            loss_cls=self._class_loss(outputs.cls_scores, labels, matched, bboxes, targets),
            **self._box_losses(bboxes, targets, objects.img_whwh, matched.float()))
        last = len(gt_index) - 1
        return {
            name if stage == last else f'd{stage}.{name}': loss[stage] / num_matched[stage]
            for stage in range(len(gt_index)) for name, loss in by_name.items()
        }

    def _class_loss(self, cls_scores: Tensor, labels: Tensor, matched: Tensor, bboxes: Tensor,
                    targets: Tensor) -> Tensor:
        """Sum per stage, shape (S,)."""
        classes = torch.arange(cls_scores.size(-1), device=labels.device)
        goal = ((labels[..., None] == classes) & matched[..., None]).to(cls_scores)
        if self.class_targets == 'iou':
            overlaps = bbox_overlaps(bboxes.detach(), targets, is_aligned=True)
            goal = goal * overlaps.clamp(min=LEAST_TARGET)[..., None]
        loss = self.loss_cls(cls_scores.flatten(1, 2), goal.flatten(1, 2), reduction_override='none')
        return loss.flatten(1).sum(1)

    @staticmethod
    def _box_pairs(bboxes: Tensor, gt_bboxes: Tensor, index: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes of all queries and of their objects, each (S, B, N, 4): shapes stay fixed, unmatched ones weigh 0."""
        targets = gt_bboxes.expand(len(index), -1, -1, -1).gather(2, index[..., None].expand(-1, -1, -1, 4))
        # In place of an unmatched query two boxes that no loss finds infinite or without a derivative: CIoU is both
        # where they are equal.
        unit, is_matched = (torch.arange(4, device=bboxes.device) >= 2).to(bboxes), matched[..., None]
        return torch.where(is_matched, bboxes, unit), torch.where(is_matched, targets, 2 * unit)

    def _box_losses(self, bboxes: Tensor, targets: Tensor, img_whwh: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Sums per stage, shape (S,)."""
        if self.box_unit == 'object':
            area = (targets[..., 2:] - targets[..., :2]).prod(-1, keepdim=True)
            unit = area.clamp(min=SMALLEST_AREA).sqrt()
        else:
            unit = img_whwh[:, None]
        l1 = self.loss_bbox(bboxes / unit, targets / unit, reduction_override='none').sum(-1)
        iou = self.loss_iou(bboxes.reshape(-1, 4), targets.reshape(-1, 4), reduction_override='none').view_as(l1)
        return dict(loss_bbox=(l1 * weight).flatten(1).sum(1), loss_iou=(iou * weight).flatten(1).sum(1))
