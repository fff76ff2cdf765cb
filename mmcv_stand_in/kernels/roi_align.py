"""RoIAlign. He et al. 2017 (Mask R-CNN), arXiv:1703.06870, Sec. 3.

A bin averages bilinear samples: it is a weighted sum of pixels, the weights products of one along y and one along x.
"""

import torch
from torch import Tensor

from .roi_samples import RoIGrid, axis_positions, cells_and_weights, equal_grids, roi_grid
from .weighted_rows import add_to_rows, as_images, as_table, sum_rows

MAXIMUM = 0  # mmcv's number of the pooling mode; 1 is the average
LEAST = -10000.0  # what mmcv's maximum starts from, and gives where a bin has no sample


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                      aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                      pool_mode: int, aligned: bool) -> None:
    """Features of boxes.

    Args:
        input (Tensor): shape (B, C, H, W).
        rois (Tensor): index of the image and absolute xyxy in pixels, shape (N, 5).
        output (Tensor): receives the features, shape (N, C, aligned_height, aligned_width).
        argmax_y (Tensor): receives, where the maximum is taken, the sample that has it, in cells, -1 for none; of the
            shape of ``output``, else empty.
        argmax_x (Tensor): likewise.
        aligned_height (int): bins along y.
        aligned_width (int): bins along x.
        spatial_scale (float): cells per pixel.
        sampling_ratio (int): samples a side in a bin; 0: as many as a bin has cells, rounded up.
        pool_mode (int): 0 for the maximum of a bin's samples, 1 for their average.
        aligned (bool): whether a cell's value is that of its centre.
    """
    table, map_size = as_table(input), tuple(input.shape[2:])
    grid = roi_grid(rois, (aligned_height, aligned_width), map_size, spatial_scale, sampling_ratio, aligned)
    if pool_mode == MAXIMUM:
        output.fill_(LEAST)
        argmax_y.fill_(-1)
        argmax_x.fill_(-1)
    for boxes, along_x, along_y in equal_grids(grid):
        part = grid.of(boxes)
        if pool_mode == MAXIMUM:
            values, y, x = _maxima(table, part, along_x, along_y)
            argmax_y[boxes], argmax_x[boxes] = y.to(argmax_y.dtype), x.to(argmax_x.dtype)
        else:
            values = sum_rows(table, *_bins(part, along_x, along_y, table.dtype))
            values = values.view(len(boxes), aligned_height, aligned_width, table.size(1)).permute(0, 3, 1, 2)
        output[boxes] = values.to(output.dtype)


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Gradient by the features, added to ``grad_input`` (B, C, H, W); other arguments as in the forward pass."""
    if pool_mode == MAXIMUM:
        _add_at_maxima(grad_output, rois, argmax_y, argmax_x, grad_input)
        return
    size, map_size = (aligned_height, aligned_width), tuple(grad_input.shape[2:])
    grid = roi_grid(rois, size, map_size, spatial_scale, sampling_ratio, aligned)
    values = as_table(grad_output).unflatten(0, (len(rois), aligned_height * aligned_width))  # (N, bins, C)
    table = values.new_zeros(grad_input[:, 0].numel(), grad_input.size(1))
    for boxes, along_x, along_y in equal_grids(grid):
        rows, weights = _bins(grid.of(boxes), along_x, along_y, table.dtype)
        add_to_rows(table, rows, weights, values[boxes].flatten(0, 1))
    grad_input.add_(as_images(table, tuple(grad_input.shape)))


def _bins(grid: RoIGrid, along_x: int, along_y: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of the table of pixels that each bin sums and their weights, shape (N * bins, pixels of a bin) each."""
    height, width = grid.map_size
    y_cell, y_weight = cells_and_weights(axis_positions(grid, 1, along_y), height)  # (N, P, samples, 2)
    x_cell, x_weight = cells_and_weights(axis_positions(grid, 0, along_x), width)
    y_row = (grid.images[:, None, None, None] * height + y_cell) * width
    # (N, P, taps) each -> (N, P of y, P of x, taps of y, taps of x)
    rows = y_row.flatten(2)[:, :, None, :, None] + x_cell.flatten(2)[:, None, :, None]
    weights = y_weight.flatten(2)[:, :, None, :, None] * x_weight.flatten(2)[:, None, :, None]
    pixels = rows.size(3) * rows.size(4)
    return rows.reshape(-1, pixels), (weights / (along_x * along_y)).to(dtype).reshape(-1, pixels)


def _maxima(table: Tensor, grid: RoIGrid, along_x: int, along_y: int) -> tuple[Tensor, Tensor, Tensor]:
    """Highest sample of each bin, and where it lies along y and x in cells, shape (N, C, P of y, P of x) each."""
    height, width = grid.map_size
    y, x = axis_positions(grid, 1, along_y), axis_positions(grid, 0, along_x)  # (N, P, samples)
    y, x = torch.broadcast_tensors(y[:, :, None, :, None], x[:, None, :, None])  # (N, P, P, samples of y, of x)
    y_cell, y_weight = cells_and_weights(y, height)
    x_cell, x_weight = cells_and_weights(x, width)
    y_row = (grid.images.view(-1, 1, 1, 1, 1, 1) * height + y_cell) * width
    rows = y_row[..., :, None] + x_cell[..., None, :]
    weights = (y_weight[..., :, None] * x_weight[..., None, :]).to(table.dtype)
    samples = sum_rows(table, rows.view(-1, 4), weights.view(-1, 4)).unflatten(0, (*y.shape[:3], along_y * along_x))
    values, sample = samples.max(3)  # the first of equal ones, as mmcv
    y, x = (position.flatten(3).gather(3, sample).permute(0, 3, 1, 2) for position in (y, x))
    return values.permute(0, 3, 1, 2), y, x


def _add_at_maxima(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor) -> None:
    _, channels, height, width = grad_input.shape
    y_cell, y_weight = cells_and_weights(argmax_y, height)
    x_cell, x_weight = cells_and_weights(argmax_x, width)
    channel = torch.arange(channels, device=rois.device)[:, None, None, None]
    plane = rois[:, 0].long().view(-1, 1, 1, 1, 1) * channels + channel  # (N, C, 1, 1, 1)
    pixels = ((plane * height + y_cell) * width)[..., :, None] + x_cell[..., None, :]
    weights = y_weight[..., :, None] * x_weight[..., None, :] * (argmax_y != -1)[..., None, None]
    added = torch.zeros_like(grad_input, memory_format=torch.contiguous_format)
    added.view(-1).index_add_(0, pixels.flatten(), (weights * grad_output[..., None, None]).flatten().to(added.dtype))
    grad_input.add_(added)
