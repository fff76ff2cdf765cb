"""RoIAlign as a sum of gathered rows. He et al. 2017 (Mask R-CNN), arXiv:1703.06870, Sec. 3.

A bin averages bilinear samples, and each sample is a weighted sum of four pixels, so with two samples a side a bin is a
weighted sum of 4 x 4 pixels. Bilinear weights are products of a vertical and a horizontal one, and so is the average:
``bin = sum_ij wy_i wx_j F[y_i, x_j]``. With all levels of all images as rows of one table, RoIAlign of all boxes is one
``embedding_bag`` over that table; the backward pass is another one, over the same pairs sorted by row.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .host_and_device import exact_float


class FlatPyramid(NamedTuple):
    """All levels of a feature pyramid as one table of pixels.

    Attributes:
        table (Tensor): image by image, shape (B * sum over levels of H_l * W_l, C).
        first_rows (Tensor): where each image of each level begins, int64, shape (L, B).
        heights (Tensor): H_l, int64, shape (L,).
        widths (Tensor): W_l, int64, shape (L,).
        strides (Tensor): pixels per cell, float64 (float32 on a device without it), shape (L,).
    """

    table: Tensor
    first_rows: Tensor
    heights: Tensor
    widths: Tensor
    strides: Tensor


def flatten_pyramid(features: tuple[Tensor, ...], strides: tuple[float, ...]) -> FlatPyramid:
    """Lay a pyramid out as a table; made once per batch, for all stages and steps.

    Args:
        features (tuple[Tensor, ...]): levels of shape (B, C, H_l, W_l). In half precision they are widened where
            gradients are computed.
        strides (tuple[float, ...]): pixels per cell of each level.

    Returns:
        FlatPyramid: see there.
    """
    table = torch.cat([level.flatten(2).mT for level in features], dim=1).flatten(0, 1)
    if torch.is_grad_enabled():  # a pixel's gradient is the sum of many, too many for half precision
        table = table.to(torch.promote_types(table.dtype, torch.float32))
    device = table.device
    heights, widths = (_filled([level.size(axis) for level in features], torch.int64, device) for axis in (2, 3))
    areas = heights * widths
    images = torch.arange(features[0].size(0), device=device)
    first_rows = (areas.cumsum(0) - areas)[:, None] + areas.sum() * images
    return FlatPyramid(table, first_rows, heights, widths, _filled(strides, exact_float(device), device))


def _filled(values: Iterable[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As ``torch.tensor``, but by fill operators: a GPU would have to wait for an upload."""
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


def roi_align_rows(pyramid: FlatPyramid, bboxes: Tensor, levels: Tensor, output_size: int,
                   sampling_ratio: int) -> Tensor:
    """Aligned RoIAlign of each box on its level; gradients reach the features, not the boxes.

    Args:
        pyramid (FlatPyramid): the features.
        bboxes (Tensor): absolute xyxy in pixels, any values (of no area, outside the image), shape (B, N, 4).
        levels (Tensor): the level of each box, int64, shape (B, N).
        output_size (int): bins a side, P.
        sampling_ratio (int): samples a side in a bin.

    Returns:
        Tensor: bins row by row, dtype of the table, shape (B * N, P * P, C).
    """
    taps = _taps(pyramid, bboxes, levels, output_size, sampling_ratio)
    features = _WeightedRows.apply(pyramid.table, *taps)
    return features.view(bboxes.size(0) * bboxes.size(1), output_size * output_size, pyramid.table.size(1))


@torch.no_grad()
def _taps(pyramid: FlatPyramid, bboxes: Tensor, levels: Tensor, output_size: int, sampling_ratio: int) -> list[Tensor]:
    """First row of each image row, its weight, column and the column's weight, each (B * N, P, 2 * sampling_ratio)."""
    start = pyramid.first_rows.gather(0, levels.mT).mT  # (B, N)
    height, width = pyramid.heights[levels], pyramid.widths[levels]

    # float64: on a box of 1000 pixels float32 leaves a sample's place on a 4-pixel grid no more than 5 digits.
    boxes = bboxes.to(pyramid.strides.dtype) / pyramid.strides[levels][..., None] - 0.5
    x_cell, x_weight = _axis_samples(boxes[..., 0], boxes[..., 2], width, output_size, sampling_ratio)
    y_cell, y_weight = _axis_samples(boxes[..., 1], boxes[..., 3], height, output_size, sampling_ratio)
    y_row = start[..., None, None] + y_cell * width[..., None, None]
    dtype = pyramid.table.dtype
    # int32, since the backward pass sorts the rows, in half the time of int64.
    return [taps.flatten(0, 1) for taps in (y_row.int(), y_weight.to(dtype), x_cell.int(), x_weight.to(dtype))]


def _rows_and_weights(y_row: Tensor, y_weight: Tensor, x_cell: Tensor, x_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that each bin sums and their weights, both of shape (B * N * P * P, (2 * sampling_ratio)^2)."""
    # (..., P, taps) each -> (..., P of y, P of x, taps of y, taps of x)
    rows = y_row[:, :, None, :, None] + x_cell[:, None, :, None, :]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    taps = y_row.size(-1) * x_cell.size(-1)
    return rows.reshape(-1, taps), weights.reshape(-1, taps)


def _axis_samples(low: Tensor, high: Tensor, size: Tensor, output_size: int,
                  sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """Cells and weights of the bins along one axis.

    Args:
        low (Tensor): start of each box in cells, float64 (or float32, see above), shape (B, N).
        high (Tensor): its end.
        size (Tensor): number of cells of the box's level, int64, shape (B, N).
        output_size (int): bins P.
        sampling_ratio (int): samples in a bin.

    Returns:
        tuple[Tensor, Tensor]: cells, int64, and weights, of the type of ``low``, each (B, N, P, 2 * sampling_ratio).
        Samples more than one cell outside the level weigh nothing; nearer ones take the border cell.
    """
    samples = output_size * sampling_ratio
    fraction = (torch.arange(samples, device=low.device, dtype=low.dtype) + 0.5) / samples
    position = low[..., None] + fraction * (high - low)[..., None]
    size = size[..., None]
    inside = (position >= -1) & (position <= size)
    position = torch.minimum(position.clamp(min=0), (size - 1).to(low.dtype))
    lower = torch.minimum(position.long().clamp(min=0), size - 1)  # NaN boxes end as NaN features, not as bad rows
    upper = torch.minimum(lower + 1, size - 1)
    share = position - lower
    cells = torch.stack([lower, upper], dim=-1)
    weights = torch.stack([1 - share, share], dim=-1) * (inside[..., None] / sampling_ratio)
    shape = (*low.shape, output_size, 2 * sampling_ratio)
    return cells.view(shape), weights.view(shape)


class _WeightedRows(torch.autograd.Function):
    """``out[k] = sum_j weights[k, j] table[rows[k, j]]`` with a gradient to the table alone.

    Rows and weights are made again for the backward pass: along two axes they are a fiftieth of the memory.
    """

    @staticmethod
    def forward(ctx, table: Tensor, *taps: Tensor) -> Tensor:
        ctx.save_for_backward(*taps)
        ctx.num_rows = table.size(0)
        rows, weights = _rows_and_weights(*taps)
        return F.embedding_bag(rows, table, mode='sum', per_sample_weights=weights)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        # grad_table[r] = sum over pairs (k, j) with rows[k, j] = r of weights[k, j] grad_output[k]: the same sum with
        # the roles of rows and bins exchanged, so sort the pairs by row.
        rows, weights = _rows_and_weights(*ctx.saved_tensors)
        row, order = rows.flatten().sort()
        offsets = torch.searchsorted(row, torch.arange(ctx.num_rows, dtype=row.dtype, device=row.device))
        grad_table = F.embedding_bag(order // rows.size(1), grad_output.contiguous(), offsets, mode='sum',
                                     per_sample_weights=weights.flatten().index_select(0, order))
        return grad_table, None, None, None, None
