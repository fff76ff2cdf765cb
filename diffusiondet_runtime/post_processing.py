"""From the last stage's outputs to a picture's detections. arXiv:2211.09788, Sec. 3.4."""

from typing import NamedTuple

import numpy as np

from .sampling import sigmoid

SOFT_METHODS = ('naive', 'linear', 'gaussian')


class Detections(NamedTuple):
    """What is found in one picture, by falling score.

    Attributes:
        bboxes (np.ndarray): absolute xyxy in pixels of the picture, float32, shape (K, 4).
        scores (np.ndarray): probabilities, float32, shape (K,).
        labels (np.ndarray): class indices, int64, shape (K,).
    """

    bboxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def best_pairs(logits: np.ndarray, bboxes: np.ndarray) -> Detections:
    """The N most probable of the N x C box-class pairs of one picture; logits (N, C), boxes (N, 4)."""
    number, classes = logits.shape
    scores = sigmoid(logits).reshape(-1)
    pairs = np.argpartition(-scores, number - 1)[:number] if scores.size > number else np.arange(number)
    return Detections(bboxes[pairs // classes], scores[pairs], pairs % classes)


def merge_steps(steps: list[Detections], ensemble: str) -> Detections:
    """Join the steps that count: ``all``, ``all_but_last`` or ``last``; a single step always counts."""
    if ensemble == 'last':
        steps = steps[-1:]
    elif ensemble == 'all_but_last' and len(steps) > 1:
        steps = steps[:-1]
    return Detections(*map(np.concatenate, zip(*steps, strict=True)))


def finish(found: Detections, settings: dict, size: tuple[int, int], scale: tuple[float, float]) -> Detections:
    """Suppress, clip, drop and rescale the detections of one picture.

    Args:
        found (Detections): in pixels of the network input.
        settings (dict): ``score_thr``, ``nms``, ``min_bbox_size`` and ``max_per_img`` of the exported folder.
        size (tuple[int, int]): width and height of the network input before padding.
        scale (tuple[float, float]): of width and height, from picture to network input.

    Returns:
        Detections: in pixels of the picture.
    """
    found = Detections(*(values[found.scores > np.float32(settings['score_thr'])] for values in found))
    if settings['nms'] is not None:
        found = class_wise_nms(found, settings['nms'])
    order = np.argsort(-found.scores, kind='stable')
    bboxes, scores, labels = (values[order] for values in found)
    bboxes = np.clip(bboxes, 0, np.array([*size, *size], dtype=np.float32))
    large = ((bboxes[:, 2:] - bboxes[:, :2]) > settings['min_bbox_size']).all(-1)
    bboxes, scores, labels = (values[large][:settings['max_per_img']] for values in (bboxes, scores, labels))
    return Detections(bboxes / np.array([*scale, *scale], dtype=np.float32), scores, labels)


def class_wise_nms(found: Detections, nms: dict) -> Detections:
    """Suppression within each class.

    Args:
        found (Detections): of one picture, in any order.
        nms (dict): as in the config: ``iou_threshold``; of ``soft_nms`` also ``sigma``, ``min_score`` and ``method``;
            ``class_agnostic``, ``max_num``.

    Returns:
        Detections: those kept, with lowered scores where suppression is soft; the ``max_num`` best of them.
    """
    groups = np.zeros_like(found.labels) if nms.get('class_agnostic') else found.labels
    parts = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        if nms.get('type', 'nms') == 'soft_nms':
            kept, scores = soft_nms(found.bboxes[members], found.scores[members], nms)
        else:
            kept = hard_nms(found.bboxes[members], found.scores[members], nms['iou_threshold'])
            scores = found.scores[members][kept]
        parts.append(Detections(found.bboxes[members][kept], scores, found.labels[members][kept]))
    if not parts:
        return found
    bboxes, scores, labels = map(np.concatenate, zip(*parts, strict=True))
    if nms.get('type', 'nms') == 'soft_nms':  # mmcv keeps one best box of all, whatever its score, not one a class
        left = ~(scores < np.float32(nms.get('min_score', 1e-3)))
        left[np.argmax(scores)] = True
        bboxes, scores, labels = bboxes[left], scores[left], labels[left]
    order = np.argsort(-scores, kind='stable')[:nms['max_num'] if nms.get('max_num', -1) > 0 else None]
    return Detections(bboxes[order], scores[order], labels[order])


def hard_nms(bboxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Indices kept, by falling score: a box whose IoU with a kept one is above the threshold is suppressed."""
    order, kept = np.argsort(-scores, kind='stable'), []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[~(overlaps(bboxes[best], bboxes[order]) > np.float32(threshold))]
    return np.array(kept, dtype=np.int64)


def soft_nms(bboxes: np.ndarray, scores: np.ndarray, nms: dict) -> tuple[np.ndarray, np.ndarray]:
    """Indices left and their lowered scores. Bodla et al. 2017, arXiv:1704.04503, Sec. 4."""
    threshold, method = np.float32(nms['iou_threshold']), nms.get('method', 'linear')
    scores, left, kept = scores.copy(), np.arange(len(scores)), []
    while left.size:
        best = left[np.argmax(scores[left])]
        kept.append(best)
        left = left[left != best]
        iou = overlaps(bboxes[best], bboxes[left])
        if method == 'gaussian':
            scores[left] *= np.exp(-iou * iou / np.float32(nms.get('sigma', 0.5)))
        else:
            scores[left] *= np.where(iou >= threshold, 0 if method == 'naive' else 1 - iou, 1).astype(np.float32)
        left = left[~(scores[left] < np.float32(nms.get('min_score', 1e-3)))]
    kept = np.array(kept, dtype=np.int64)
    return kept, scores[kept]


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of one box (4,) with others (K, 4), float32; boxes without area overlap nothing."""
    sides = np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0)
    inter = sides[:, 0] * sides[:, 1]
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = (box[2] - box[0]) * (box[3] - box[1]) + areas - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
