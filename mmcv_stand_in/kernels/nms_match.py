"""Groups of boxes around those that non-maximum suppression keeps."""

import numpy as np
import torch
from torch import Tensor

from .box_overlaps import box_areas, overlaps_with_one


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Each box that is kept, with those that it suppresses.

    Args:
        dets (Tensor): absolute xyxy in pixels and score, on the CPU, shape (N, 5).
        iou_threshold (float): a box whose IoU with a kept one is this or above is suppressed.

    Returns:
        list[list[int]]: indices; of each group the kept one first, then the others, both by falling score.
    """
    dets = dets.float()
    left = dets[:, 4].sort(0, descending=True)[1].numpy()
    table = torch.cat([dets, box_areas(dets)[:, None]], dim=1).T.numpy()  # (6, N)
    threshold, groups = np.float32(iou_threshold), []
    while len(left):
        first, left = left[0], left[1:]
        is_suppressed = overlaps_with_one(table[:, first], table[:, left], offset=0) >= threshold
        groups.append([int(first), *left[is_suppressed].tolist()])
        left = left[~is_suppressed]
    return groups
