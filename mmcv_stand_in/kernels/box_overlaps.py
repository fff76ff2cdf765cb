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


def overlaps_above(first: Tensor, second: Tensor, threshold: float, offset: int) -> Tensor:
    """Whether the IoU of each pair is above a threshold, rounded as by mmcv's kernels; not where neither has an area.

    mmcv divides on a CPU and multiplies on a GPU, and so does this: an IoU of just the threshold goes either way.

    Args:
        first (Tensor): x1, y1, x2, y2 in pixels and area, rows that lie together in memory, shape (5, N).
        second (Tensor): likewise, shape (5, M).
        threshold (float): of the IoU, taken in the dtype of the boxes.
        offset (int): added to widths and heights.

    Returns:
        Tensor: bool, shape (N, M).
    """
    width, height = (torch.minimum(first[axis + 2, :, None], second[axis + 2])
                     .sub_(torch.maximum(first[axis, :, None], second[axis])) for axis in (0, 1))
    if offset:
        width, height = width.add_(offset), height.add_(offset)
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    covered = torch.add(first[4, :, None], second[4], out=height).sub_(shared)
    if first.device.type != 'cpu':
        return shared > covered.mul_(threshold)
    return torch.from_numpy(shared.div_(covered).numpy() > threshold)  # a quarter of torch's time


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
