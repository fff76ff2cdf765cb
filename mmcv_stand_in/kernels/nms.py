"""Non-maximum suppression, in blocks.

Of the boxes that are left, by falling score, the first few make a block. What is kept of a block depends on its own
boxes alone, and is found one box after the other; what that suppresses among all later ones is one comparison of a
matrix. So there are as many steps as blocks, and never more overlaps at once than a block has with the rest.
"""

import numpy as np
import torch
from torch import Tensor

from .box_overlaps import box_areas, overlaps_above
from .torchvision_operators import torchvision_operator

BLOCK = 128  # boxes; of 64 to 512 the fastest on a CPU at 2000 boxes
GPU_BLOCK = 1024  # each block waits for the GPU once


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that are kept.

    Args:
        boxes (Tensor): absolute xyxy in pixels, shape (N, 4).
        scores (Tensor): shape (N,).
        iou_threshold (float): a box whose IoU with a kept one is above it is suppressed.
        offset (int): 0 or 1, added to widths and heights.

    Returns:
        Tensor: int64, by falling score, shape (number kept,).
    """
    order = scores.sort(0, descending=True)[1]  # mmcv's call: of boxes with one score the same one comes first
    ordered = boxes[order] if boxes.dtype == torch.float64 else boxes[order].float()
    by_torchvision = torchvision_operator('nms', boxes.device.type) if offset == 0 else None
    if by_torchvision is not None and len(order):
        # It reads the threshold in float64 where mmcv rounds it, and would sort in its own way.
        ranks = torch.arange(len(order), 0, -1, device=boxes.device, dtype=ordered.dtype)
        return order[by_torchvision(ordered, ranks, float(np.float32(iou_threshold)))]
    return order[_kept(ordered, iou_threshold, offset)]


def _kept(boxes: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Positions of the boxes kept, for boxes by falling score, float32 or float64, shape (N, 4)."""
    size = BLOCK if boxes.device.type == 'cpu' else GPU_BLOCK
    left = torch.arange(len(boxes), device=boxes.device)
    table = torch.cat([boxes.T, box_areas(boxes, offset)[None]])
    kept = [left[:0]]
    while len(left):
        block, left = left[:size], left[size:]
        table_of_block, table = table[:, :size], table[:, size:]
        is_kept = _greedy(overlaps_above(table_of_block, table_of_block, iou_threshold, offset))
        kept.append(block[is_kept])
        if len(left):
            stays = _in_no_row(overlaps_above(table_of_block[:, is_kept], table, iou_threshold, offset))
            left, table = left[stays], table[:, stays]
    return torch.cat(kept)


def _in_no_row(overlaps: Tensor) -> Tensor:
    """Columns of a bool matrix without a True, shape (N, M) -> (M,)."""
    if overlaps.device.type != 'cpu':
        return ~overlaps.any(0)
    return torch.from_numpy(~overlaps.numpy().any(0))  # a tenth of torch's time


def _greedy(overlaps: Tensor) -> Tensor:
    """Keep each box that no kept one before it overlaps.

    Args:
        overlaps (Tensor): bool, shape (N, N).

    Returns:
        Tensor: bool, shape (N,).
    """
    # A row as one integer, a bit for each box: to suppress all that a box overlaps is then one "or".
    packed = np.packbits(overlaps.cpu().numpy(), axis=1, bitorder='little')
    rows = [int.from_bytes(row, 'little') for row in packed]
    suppressed, kept = 0, np.zeros(len(rows), dtype=bool)
    for index, row in enumerate(rows):
        if not suppressed >> index & 1:
            kept[index] = True
            suppressed |= row
    return torch.from_numpy(kept).to(overlaps.device)
