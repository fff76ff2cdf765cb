"""Set prediction loss of all refinement stages. arXiv:2211.09788, Sec. 3.3 and Appendix."""

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.utils import ConfigType
from torch import Tensor, nn

from ..structures import PaddedObjects, StageOutputs


@MODELS.register_module()
class DiffusionDetCriterion(nn.Module):
    """Matches every stage's outputs to the objects and sums class, L1 and GIoU losses.

    Each stage's sums are divided by the number of its matched queries on this process, at least 1. Everything is
    computed in float32, under autocast too.

    Args:
        assigner (ConfigType): such as ``DynamicKAssigner``; needs ``match(cls_scores, bboxes, objects)``.
        loss_cls (ConfigType): of the class logits against one-hot targets, both of shape (S, B * N, C); ``FocalLoss``,
            ``CrossEntropyLoss`` with ``use_sigmoid=True``, or ``FederatedLoss`` around one of them.
        loss_bbox (ConfigType): of xyxy divided by the image size.
        loss_iou (ConfigType): of xyxy in pixels.

    Raises:
        ValueError: if the class loss is a softmax over classes, which has no place for queries without an object.
    """

    def __init__(self, *, assigner: ConfigType, loss_cls: ConfigType, loss_bbox: ConfigType,
                 loss_iou: ConfigType) -> None:
        super().__init__()
        self.assigner = TASK_UTILS.build(assigner)
        self.loss_cls = MODELS.build(loss_cls)
        inner = getattr(self.loss_cls, 'loss', self.loss_cls)
        if getattr(inner, 'use_sigmoid', True) is False:
            raise ValueError(f'loss_cls of DiffusionDetCriterion is a {type(inner).__name__} with use_sigmoid=False; '
                             'the head has a logit for each class and none for the background: set use_sigmoid=True')
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
        matched = gt_index >= 0
        num_matched = matched.flatten(1).sum(1).clamp(min=1)
        by_name = dict(
            loss_cls=self._class_loss(outputs.cls_scores, objects.labels, gt_index),
            **self._box_losses(outputs.bboxes, objects, gt_index, matched.float()))
        last = len(gt_index) - 1
        return {
            name if stage == last else f'd{stage}.{name}': loss[stage] / num_matched[stage]
            for stage in range(len(gt_index)) for name, loss in by_name.items()
        }

    def _class_loss(self, cls_scores: Tensor, labels: Tensor, gt_index: Tensor) -> Tensor:
        """Sum per stage, shape (S,)."""
        num_classes = cls_scores.size(-1)
        label = labels.expand(len(gt_index), -1, -1).gather(2, gt_index.clamp(min=0))
        label = torch.where(gt_index >= 0, label, num_classes)
        target = (label[..., None] == torch.arange(num_classes, device=label.device)).to(cls_scores)
        loss = self.loss_cls(cls_scores.flatten(1, 2), target.flatten(1, 2), reduction_override='none')
        return loss.flatten(1).sum(1)

    def _box_losses(self, bboxes: Tensor, objects: PaddedObjects, gt_index: Tensor,
                    weight: Tensor) -> dict[str, Tensor]:
        """Sums per stage, shape (S,). Every query is computed and the unmatched ones weigh 0: shapes stay fixed."""
        index = gt_index.clamp(min=0)[..., None].expand(-1, -1, -1, 4)
        target = objects.bboxes.expand(len(gt_index), -1, -1, -1).gather(2, index)
        # In place of an unmatched query two boxes that no loss finds infinite or without a derivative: CIoU is both
        # where they are equal.
        unit, is_matched = (torch.arange(4, device=bboxes.device) >= 2).to(bboxes), weight[..., None] > 0
        bboxes, target = torch.where(is_matched, bboxes, unit), torch.where(is_matched, target, 2 * unit)
        whwh = objects.img_whwh[:, None]
        l1 = self.loss_bbox(bboxes / whwh, target / whwh, reduction_override='none').sum(-1)
        iou = self.loss_iou(bboxes.reshape(-1, 4), target.reshape(-1, 4), reduction_override='none').view_as(l1)
        return dict(loss_bbox=(l1 * weight).flatten(1).sum(1), loss_iou=(iou * weight).flatten(1).sum(1))
