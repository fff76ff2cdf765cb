"""Soft-NMS. Bodla et al. 2017, arXiv:1704.04503, Sec. 4.

One box after the other, the best first: the scores of all that are left fall by their overlap with it, and those below
the least score go. mmcv keeps the boxes in one list: the best changes places with the first that is left, and the last
one takes the place of one that goes. Among equal scores the first in the list is taken, so this keeps such a list too.
"""

import numpy as np
import torch
from torch import Tensor

from .box_overlaps import box_areas, overlaps_with_one

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float,
            method: int, offset: int) -> Tensor:
    """Indices of the boxes that are left, and their lowered scores.

    Args:
        boxes (Tensor): absolute xyxy in pixels, on the CPU, shape (N, 4).
        scores (Tensor): shape (N,).
        dets (Tensor): receives, in its first rows, boxes and lowered scores, shape (N, 5).
        iou_threshold (float): IoU from which ``NAIVE`` and ``LINEAR`` lower a score.
        sigma (float): of ``GAUSSIAN``.
        min_score (float): boxes with less are dropped.
        method (int): ``NAIVE`` (to zero), ``LINEAR`` (times 1 - IoU) or ``GAUSSIAN`` (times exp(-IoU^2 / sigma)).
        offset (int): 0 or 1, added to widths and heights.

    Returns:
        Tensor: int64, in the order in which they were taken, shape (number left,).
    """
    table = torch.cat([boxes.float().T, scores.float()[None], box_areas(boxes.float(), offset)[None]]).numpy()
    indices = np.arange(len(boxes))
    sigma, min_score, first = np.float32(sigma), np.float32(min_score), 0
    while first < table.shape[1]:
        best = first + _first_of_best(table[4, first:])
        table[:, [first, best]] = table[:, [best, first]]
        indices[[first, best]] = indices[[best, first]]
        later = table[:, first + 1:]
        later[4] *= _weights(overlaps_with_one(table[:, first], later, offset), iou_threshold, sigma, method)
        places = _places(~(later[4] < min_score)) + first + 1
        if len(places) < later.shape[1]:
            places = np.concatenate([np.arange(first + 1), places])
            table, indices = table[:, places], indices[places]
        first += 1
    dets[:len(indices)] = torch.from_numpy(table[:5].T.copy())
    return torch.from_numpy(indices)


def _first_of_best(scores: np.ndarray) -> int:
    """Where the highest score is first met; NaN is higher than none, but stays if it comes first."""
    if np.isnan(scores[0]):
        return 0
    return int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))


def _weights(overlaps: np.ndarray, iou_threshold: float, sigma: np.float32, method: int) -> np.ndarray:
    """What the scores are multiplied with, float32, shape (M,)."""
    if method == GAUSSIAN:
        # float64: numpy's own exponential of float32 is off by more than one last digit, and ties would break.
        return np.exp((-(overlaps * overlaps) / sigma).astype(np.float64)).astype(np.float32)
    lowered = np.float32(0) if method == NAIVE else np.float32(1) - overlaps
    return np.where(overlaps >= np.float32(iou_threshold), lowered, np.float32(1))


def _places(stays: np.ndarray) -> np.ndarray:
    """The list after boxes have gone: the last that stays fills the first gap, and so on.

    Args:
        stays (np.ndarray): bool, shape (M,).

    Returns:
        np.ndarray: which box each place holds, shape (number that stay,).
    """
    number = np.count_nonzero(stays)
    places = np.arange(number)
    gaps = np.flatnonzero(~stays[:number])
    places[gaps] = np.flatnonzero(stays[number:])[::-1] + number
    return places
