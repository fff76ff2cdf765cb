"""Which boxes of two sets overlap by more than a threshold."""

import numpy as np
import torch
from torch import Tensor


def box_areas(boxes: Tensor, offset: int = 0) -> Tensor:
    """Area of each box.

    Args:
        boxes (Tensor): absolute xyxy in pixels, shape (N, 4).
        offset (int): added to width and height; 1 where coordinates are those of the last pixel inside.

    Returns:
        Tensor: square pixels, shape (N,).
    """
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def intersection_and_union(first: Tensor, second: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Areas that each pair of boxes shares and covers, rounded as mmcv's kernels round them.

    Args:
        first (Tensor): absolute xyxy in pixels, shape (N, 4).
        second (Tensor): likewise, shape (M, 4).
        offset (int): added to widths and heights.

    Returns:
        tuple[Tensor, Tensor]: square pixels, shape (N, M) each.
    """
    width, height = (
        torch.minimum(first[:, None, axis + 2], second[:, axis + 2]).sub_(
            torch.maximum(first[:, None, axis], second[:, axis])).add_(offset).clamp_(min=0) for axis in (0, 1))
    shared = width.mul_(height)
    covered = torch.add(box_areas(first, offset)[:, None], box_areas(second, offset), out=height).sub_(shared)
    return shared, covered


def overlaps_above(first: Tensor, second: Tensor, threshold: float, offset: int) -> Tensor:
    """Whether the IoU of each pair is above a threshold; never where neither box has an area.

    mmcv divides on a CPU and multiplies on a GPU, and so does this: an IoU of just the threshold goes either way.

    Args:
        first (Tensor): absolute xyxy in pixels, shape (N, 4).
        second (Tensor): likewise, shape (M, 4).
        threshold (float): of the IoU, taken in the dtype of the boxes.
        offset (int): added to widths and heights.

    Returns:
        Tensor: bool, shape (N, M).
    """
    shared, covered = intersection_and_union(first, second, offset)
    return shared > covered.mul_(threshold) if first.is_cuda else shared.div_(covered) > threshold


def overlaps_with_one(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU of one box with others, in numpy, whose calls take less time than torch's: for loops over boxes.

    Args:
        box (np.ndarray): x1, y1, x2, y2 in pixels, score and area, float32, shape (6,).
        others (np.ndarray): likewise, shape (6, M).
        offset (int): added to widths and heights.

    Returns:
        np.ndarray: float32, shape (M,); NaN where neither box has an area.
    """
    zero, offset = np.float32(0), np.float32(offset)
    width = np.maximum(np.minimum(box[2], others[2]) - np.maximum(box[0], others[0]) + offset, zero)
    height = np.maximum(np.minimum(box[3], others[3]) - np.maximum(box[1], others[1]) + offset, zero)
    shared = width * height
    with np.errstate(divide='ignore', invalid='ignore'):
        return shared / (box[5] + others[5] - shared)
