"""Dynamic-k matching of proposals to objects, for all images and stages at once.

One-to-many in the manner of SimOTA (Ge et al. 2021, arXiv:2107.08430, Sec. 2.3), as arXiv:2211.09788, Sec. 3.3 uses it.
Pure functions without loops over objects or images. The one thing that asks the host is whether an object needs repair.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..structures import PaddedObjects

OUTSIDE_EVERY_OBJECT = 1e4  # added to queries that lie neither in nor near any object
OUTSIDE_THIS_OBJECT = 1e2  # added where the query's centre is not both in the object and in its centre region
ALREADY_MATCHED = 1e5  # repair: taking a matched query comes after every free one


class MatchCostWeights(NamedTuple):
    """Weights and constants of the matching cost.

    Attributes:
        cls (float): weight of the focal class cost.
        l1 (float): weight of the L1 distance of boxes divided by the image size.
        giou (float): weight of the generalised IoU.
        alpha (float): focal alpha.
        gamma (float): focal gamma.
        center_radius (float): half size of the centre region in object sizes.
    """

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    center_radius: float = 2.5


def match_queries(cls_scores: Tensor, bboxes: Tensor, objects: PaddedObjects, weights: MatchCostWeights,
                  num_candidates: int, min_queries: int = 1) -> Tensor:
    """Match the queries of every stage and image to the image's objects.

    Args:
        cls_scores (Tensor): logits, shape (S, B, N, C).
        bboxes (Tensor): absolute xyxy in pixels, shape (S, B, N, 4).
        objects (PaddedObjects): the batch's objects.
        weights (MatchCostWeights): of the cost.
        num_candidates (int): how many of an object's highest IoUs add up to its number of queries.
        min_queries (int): that number is at least this, but for queries that another object gets.

    Returns:
        Tensor: for each query the index of its object or -1, int64, shape (S, B, N). A query has one object at most.
        An object has a query wherever there are at least as many queries as objects.
    """
    ious, gious = pairwise_iou_giou(bboxes, objects.bboxes)
    cost = match_cost(cls_scores, bboxes, objects, gious, weights)
    # Padding objects take no query: no IoU, no share of any cost's minimum.
    valid = objects.valid[None, :, None, :]
    cost = cost.masked_fill(~valid, torch.inf)
    matched = _dynamic_k(cost, ious, valid, num_candidates, min_queries)
    matched = _repair(matched, cost, objects.valid)
    return torch.where(matched.any(-1), matched.to(torch.uint8).argmax(-1), -1)


def pairwise_iou_giou(bboxes: Tensor, gt_bboxes: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019, arXiv:1902.09630) of every query with every object.

    Args:
        bboxes (Tensor): xyxy, shape (S, B, N, 4).
        gt_bboxes (Tensor): xyxy, shape (B, M, 4).

    Returns:
        tuple[Tensor, Tensor]: each (S, B, N, M); finite for boxes of no area too.
    """
    boxes, others = bboxes[..., :, None, :], gt_bboxes[None, :, None, :, :]
    overlap = (torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2]))
    hull = (torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2]))
    overlap = overlap.clamp(min=0).prod(-1)
    hull = hull.clamp(min=0).prod(-1)
    union = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1) - overlap
    smallest = torch.finfo(union.dtype).tiny
    iou = overlap / union.clamp(min=smallest)
    return iou, iou - (hull - union) / hull.clamp(min=smallest)


def match_cost(cls_scores: Tensor, bboxes: Tensor, objects: PaddedObjects, gious: Tensor,
               weights: MatchCostWeights) -> Tensor:
    """Cost of giving a query to an object: class, L1, GIoU and where the query's centre lies.

    Args:
        cls_scores (Tensor): logits, shape (S, B, N, C).
        bboxes (Tensor): absolute xyxy in pixels, shape (S, B, N, 4).
        objects (PaddedObjects): the batch's objects.
        gious (Tensor): shape (S, B, N, M).
        weights (MatchCostWeights): of the parts.

    Returns:
        Tensor: shape (S, B, N, M); undefined at objects that are not valid.
    """
    labels = objects.labels[None, :, None, :].expand(*cls_scores.shape[:3], -1)
    class_cost = _focal_cost(cls_scores.gather(-1, labels), weights.alpha, weights.gamma)
    whwh = objects.img_whwh[:, None]
    distance = torch.cdist(bboxes / whwh, (objects.bboxes / whwh).expand(bboxes.size(0), -1, -1, -1), p=1)
    inside_both, near_any = _centre_prior(bboxes, objects, weights.center_radius)
    return (weights.cls * class_cost + weights.l1 * distance - weights.giou * gious
            + OUTSIDE_THIS_OBJECT * ~inside_both + OUTSIDE_EVERY_OBJECT * ~near_any[..., None])


def _focal_cost(logits: Tensor, alpha: float, gamma: float, eps: float = 1e-8) -> Tensor:
    """What the focal loss of a query changes by when it becomes positive (Lin et al. 2017, arXiv:1708.02002)."""
    probability = logits.sigmoid()
    positive = -alpha * (1 - probability)**gamma * (probability + eps).log()
    negative = -(1 - alpha) * probability**gamma * (1 - probability + eps).log()
    return positive - negative


def _centre_prior(bboxes: Tensor, objects: PaddedObjects, center_radius: float) -> tuple[Tensor, Tensor]:
    """Whether a query's centre lies in the object and in its centre region, shape (S, B, N, M), and in either of any.

    The second, shape (S, B, N), disregards padding objects.
    """
    centres = ((bboxes[..., :2] + bboxes[..., 2:]) / 2)[..., :, None, :]
    gt = objects.bboxes[None, :, None, :, :]
    in_object = ((centres > gt[..., :2]) & (centres < gt[..., 2:])).all(-1)
    gt_centres, reach = (gt[..., :2] + gt[..., 2:]) / 2, center_radius * (gt[..., 2:] - gt[..., :2])
    in_region = ((centres > gt_centres - reach) & (centres < gt_centres + reach)).all(-1)
    valid = objects.valid[None, :, None, :]
    return in_object & in_region, ((in_object | in_region) & valid).any(-1)


def _dynamic_k(cost: Tensor, ious: Tensor, valid: Tensor, num_candidates: int, min_queries: int) -> Tensor:
    """Each object takes its k cheapest queries, k from its highest IoUs; a query keeps its cheapest object."""
    num_candidates = min(num_candidates, cost.size(-2))
    wanted = ious.topk(num_candidates, dim=-2).values.sum(-2).long().clamp(min=min_queries)
    cheapest = cost.topk(num_candidates, dim=-2, largest=False).indices
    ranks = torch.arange(num_candidates, device=cost.device)[:, None]
    claimed = torch.zeros_like(cost, dtype=torch.bool).scatter_(-2, cheapest, ranks < wanted[..., None, :])
    return _cheapest_object_only(claimed & valid, cost)


def _cheapest_object_only(claimed: Tensor, cost: Tensor) -> Tensor:
    """Queries claimed by several objects go to the cheapest of all objects; others stay. Shapes (S, B, N, M)."""
    contested = claimed.sum(-1, keepdim=True) > 1
    winner = torch.zeros_like(claimed).scatter_(-1, cost.argmin(-1, keepdim=True), True)
    return torch.where(contested, winner, claimed)


def _repair(matched: Tensor, cost: Tensor, valid: Tensor) -> Tensor:
    """Give a query to the objects that ended with none.

    In a round each such object claims its cheapest query; free queries come before matched ones, and an object's only
    query cannot be claimed. Of several claims the cheapest wins, and a claim wins over an owner that has others left.
    So a round that can do anything leaves more objects matched than it found: an owner that loses its last queries
    lost two or more, each to an object that had none. That bounds the rounds by the number of objects, and with at
    least as many queries as objects some query is free or spare as long as an object has none.
    """
    for _ in range(valid.size(-1)):
        num_queries = matched.sum(-2)
        lonely = (num_queries == 0) & valid
        is_only_query = (matched & (num_queries == 1)[..., None, :]).any(-1)
        most = int((lonely.sum(-1) * ~is_only_query.all(-1)).max())  # in an image where a query can be claimed
        if most == 0:
            break
        # The few lonely objects alone, in their order: a round costs as much as there are of them.
        columns = lonely.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]
        claimable = lonely.gather(-1, columns)[..., None, :] & ~is_only_query[..., None]
        columns = columns[..., None, :].expand_as(claimable)
        price = cost.gather(-1, columns) + ALREADY_MATCHED * matched.any(-1, keepdim=True)
        price = price.masked_fill(~claimable, torch.inf)
        claims = torch.zeros_like(claimable).scatter_(-2, price.argmin(-2, keepdim=True), True) & claimable
        winner = columns.gather(-1, price.masked_fill(~claims, torch.inf).argmin(-1, keepdim=True))
        winner = torch.zeros_like(matched).scatter_(-1, winner, True)
        matched = torch.where(claims.any(-1, keepdim=True), winner, matched)
    return matched
