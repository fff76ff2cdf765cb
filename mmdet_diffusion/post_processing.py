"""From the stages' outputs to an image's detections: functions on tensors. arXiv:2211.09788, Sec. 3.4."""

import math

import torch
from mmcv.ops import batched_nms
from mmengine.structures import InstanceData
from torch import Tensor

from .sampling_settings import SamplingSettings
from .structures import Detections

# Largest rounding of coordinates, in pixels, that telling classes apart by an offset may cost.
MAX_OFFSET_ROUNDING = 1 / 64


def best_pairs(cls_scores: Tensor, bboxes: Tensor) -> Detections:
    """The N most probable of the N x C box-class pairs of each image.

    Args:
        cls_scores (Tensor): logits, shape (B, N, C).
        bboxes (Tensor): absolute xyxy in pixels, shape (B, N, 4).

    Returns:
        Detections: N pairs per image.
    """
    num_proposals, num_classes = cls_scores.shape[1:]
    scores, pair = cls_scores.float().sigmoid().flatten(1).topk(num_proposals, sorted=False)
    box = (pair // num_classes)[..., None].expand(-1, -1, 4)
    return Detections(bboxes.gather(1, box), scores, pair % num_classes)


def merge_steps(steps: list[Detections], ensemble: str) -> Detections:
    """Join the detections of the sampling steps that count.

    Args:
        steps (list[Detections]): in the order of sampling, at least one.
        ensemble (str): ``all``, ``all_but_last`` or ``last``; a single step always counts.

    Returns:
        Detections: K is the sum over the steps that count.
    """
    if ensemble == 'last':
        steps = steps[-1:]
    elif ensemble == 'all_but_last' and len(steps) > 1:
        steps = steps[:-1]
    return Detections(*(torch.cat(values, dim=1) for values in zip(*steps, strict=True)))


def class_wise_nms(bboxes: Tensor, scores: Tensor, labels: Tensor, nms: dict) -> tuple[Tensor, Tensor]:
    """Suppression within each class, for as many classes in one call as leave coordinates their digits.

    mmcv's ``batched_nms`` moves the boxes of class c by c times the largest coordinate. That mixes classes when
    coordinates are negative, and rounds coordinates away where classes are many. Here the classes that are present get
    cells of a square grid instead: of C classes the farthest moves by sqrt(C) cells, so 1203 classes on an image of
    1333 pixels still fit into one call, with coordinates to 1/64 pixel. Where they do not (boxes far outside the
    image), there are more calls.

    Args:
        bboxes (Tensor): xyxy in pixels, shape (K, 4), K at least 1.
        scores (Tensor): shape (K,).
        labels (Tensor): int64, shape (K,).
        nms (dict): of ``batched_nms``.

    Returns:
        tuple[Tensor, Tensor]: new scores and kept indices, by falling score.
    """
    nms = dict(nms)
    if nms.pop('class_agnostic', False):
        labels = torch.zeros_like(labels)
    present, class_rank = labels.unique(return_inverse=True)
    lowest = bboxes.min()
    cell = float(bboxes.max() - lowest) + 1
    side = min(_cells_a_side(cell, torch.finfo(bboxes.dtype).eps), math.ceil(math.sqrt(len(present))))
    per_call = max(1, side**2)
    kept_scores, kept_indices = [], []
    for first in range(0, len(present), per_call):
        place = class_rank - first
        members = ((place >= 0) & (place < per_call)).nonzero()[:, 0]
        moved = bboxes[members]
        if side:
            corner = torch.stack([place % side, place // side], dim=-1)[members] * cell
            moved = moved - lowest + corner.to(bboxes.dtype).repeat(1, 2)
        kept, indices = batched_nms(moved, scores[members], torch.zeros_like(members), nms, class_agnostic=True)
        kept_scores.append(kept[:, 4])
        kept_indices.append(members[indices])
    scores, order = torch.cat(kept_scores).sort(descending=True, stable=True)
    best = slice(nms['max_num'] if nms.get('max_num', -1) > 0 else None)
    return scores[best], torch.cat(kept_indices)[order][best]


def suppress(detections: Detections, nms: dict | None) -> Detections:
    """What suppression leaves of the detections of one image, by falling score.

    Args:
        detections (Detections): of one image, without the batch dimension: (K, 4), (K,), (K,).
        nms (dict, optional): of ``batched_nms``. None: all are left.

    Returns:
        Detections: likewise.
    """
    bboxes, scores, labels = detections
    if len(scores) and nms is not None:
        scores, kept = class_wise_nms(bboxes, scores, labels, nms)
    else:
        scores, kept = scores.sort(descending=True, stable=True)
    return Detections(bboxes[kept], scores, labels[kept])


def _cells_a_side(cell: float, eps: float) -> int:
    """Cells a side of the largest grid in which coordinates are not rounded by more than is allowed; may be 0."""
    return int(MAX_OFFSET_ROUNDING / (cell * eps)) if math.isfinite(cell) else 0


def finish_image(detections: Detections, img_meta: dict, settings: SamplingSettings, rescale: bool) -> InstanceData:
    """Suppress, clip, drop and rescale the detections of one image.

    Suppression comes before clipping: two boxes that differ only outside the image are told apart.

    Args:
        detections (Detections): of one image, without the batch dimension: (K, 4), (K,), (K,).
        img_meta (dict): ``img_shape`` (height, width) of the network input and, to rescale, ``scale_factor`` (w, h).
        settings (SamplingSettings): ``score_thr``, ``nms``, ``min_bbox_size`` and ``max_per_img``.
        rescale (bool): boxes in pixels of the original image; False leaves those of the network input.

    Returns:
        InstanceData: ``bboxes`` xyxy in pixels, ``scores`` and ``labels``, by falling score.
    """
    bboxes, scores, labels = detections
    keep = scores > (-math.inf if settings.score_thr is None else settings.score_thr)
    bboxes, scores, labels = suppress(Detections(bboxes[keep], scores[keep], labels[keep]), settings.nms)
    height, width = img_meta['img_shape'][:2]
    x, y = bboxes[:, 0::2].clamp(min=0, max=width), bboxes[:, 1::2].clamp(min=0, max=height)
    large = ((torch.cat([x.diff(dim=1), y.diff(dim=1)], dim=1)) > settings.min_bbox_size).all(-1)
    if rescale:  # by numbers, as the clipping: a tensor of them would be an upload that a GPU waits for
        x, y = (values / float(factor) for values, factor in zip((x, y), img_meta['scale_factor'], strict=True))
    bboxes = torch.stack([x, y], dim=-1).flatten(1)
    bboxes, scores, labels = (values[large][settings.best] for values in (bboxes, scores, labels))
    return InstanceData(bboxes=bboxes, scores=scores, labels=labels)
