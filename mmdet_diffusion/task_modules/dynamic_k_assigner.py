"""Assigner around the dynamic-k matching: the batched view for the criterion, one image's view for everyone else."""

import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from ..structures import PaddedObjects
from .dynamic_k_matching import MatchCostWeights, match_queries


@TASK_UTILS.register_module()
class DynamicKAssigner(BaseAssigner):
    """Gives every object its k cheapest queries, k from how well the queries overlap it (arXiv:2211.09788, Sec. 3.3).

    Args:
        cls_weight (float): weight of the focal class cost.
        l1_weight (float): weight of the L1 distance of boxes divided by the image size.
        giou_weight (float): weight of the generalised IoU.
        alpha (float): focal alpha of the class cost.
        gamma (float): focal gamma of the class cost.
        center_radius (float): a query's centre counts as near an object up to this many object sizes from its centre.
        num_candidates (int): how many of an object's highest IoUs add up to its k.
        min_queries (int): k is at least this. While boxes are far from the objects their IoUs add up to less than 1,
            and an object has one query to learn from.

    Raises:
        ValueError: if ``num_candidates`` is less than 1, ``min_queries`` is not between 1 and that, or
            ``center_radius`` is not positive.
    """

    def __init__(self, *, cls_weight: float = 2.0, l1_weight: float = 5.0, giou_weight: float = 2.0,
                 alpha: float = 0.25, gamma: float = 2.0, center_radius: float = 2.5, num_candidates: int = 5,
                 min_queries: int = 1) -> None:
        if not isinstance(num_candidates, int) or num_candidates < 1:
            raise ValueError(f'num_candidates of the assigner must be an integer of at least 1, got {num_candidates!r}')
        if not isinstance(min_queries, int) or not 1 <= min_queries <= num_candidates:
            raise ValueError(f'min_queries of the assigner must be an integer from 1 to num_candidates '
                             f'({num_candidates}), got {min_queries!r}')
        if not center_radius > 0:
            raise ValueError(f'center_radius of the assigner must be greater than 0, got {center_radius!r}')
        self.weights = MatchCostWeights(cls_weight, l1_weight, giou_weight, alpha, gamma, center_radius)
        self.num_candidates, self.min_queries = num_candidates, min_queries

    @torch.no_grad()
    def match(self, cls_scores: Tensor, bboxes: Tensor, objects: PaddedObjects) -> Tensor:
        """All stages and images at once.

        Args:
            cls_scores (Tensor): logits, shape (S, B, N, C).
            bboxes (Tensor): absolute xyxy in pixels of the network input, shape (S, B, N, 4).
            objects (PaddedObjects): the batch's objects.

        Returns:
            Tensor: index of each query's object or -1, int64, shape (S, B, N).
        """
        return match_queries(cls_scores.float(), bboxes.float(), objects, self.weights, self.num_candidates,
                             self.min_queries)

    def assign(self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: dict,
               **kwargs) -> AssignResult:
        """One image, in the form of MMDetection's assigners.

        Args:
            pred_instances (InstanceData): ``scores`` are raw logits, shape (N, C); ``bboxes`` absolute xyxy in
                pixels, shape (N, 4).
            gt_instances (InstanceData): ``bboxes`` in the same frame, shape (M, 4); ``labels``, shape (M,).
            img_meta (dict): ``img_shape`` is (height, width) in pixels.
            **kwargs: of the base class's signature; not used.

        Returns:
            AssignResult: ``gt_inds`` is 0 for queries without object and 1 + index otherwise, shape (N,).
        """
        gt_bboxes, labels = get_box_tensor(gt_instances.bboxes), gt_instances.labels
        gt_inds = labels.new_zeros(len(pred_instances.scores))
        assigned_labels = labels.new_full(gt_inds.shape, -1)
        if len(labels):
            height, width = img_meta['img_shape'][:2]
            objects = PaddedObjects(gt_bboxes[None], labels[None], torch.ones_like(labels, dtype=torch.bool)[None],
                                    gt_bboxes.new_tensor([[width, height, width, height]]))
            index = self.match(pred_instances.scores[None, None], pred_instances.bboxes[None, None], objects)[0, 0]
            gt_inds = index + 1
            assigned_labels = torch.where(index >= 0, labels[index.clamp(min=0)], -1)
        return AssignResult(len(labels), gt_inds, max_overlaps=None, labels=assigned_labels)
