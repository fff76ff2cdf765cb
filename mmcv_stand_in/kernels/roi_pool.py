"""RoI max pooling. Girshick 2015 (Fast R-CNN), arXiv:1504.08083, Sec. 2.1."""

import torch
from torch import Tensor

from .weighted_rows import as_table

VALUES = 2**24  # of the features in all bins at once: 64 MB


def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int,
                     pooled_width: int, spatial_scale: float) -> None:
    """Highest feature in each bin of each box.

    Args:
        input (Tensor): shape (B, C, H, W).
        rois (Tensor): index of the image and absolute xyxy in pixels, the last ones inside, shape (N, 5).
        output (Tensor): receives the features, 0 for bins outside the map, shape (N, C, pooled_height, pooled_width).
        argmax (Tensor): receives the pixel y * W + x of each, -1 for none, int32, of the shape of ``output``.
        pooled_height (int): bins along y.
        pooled_width (int): bins along x.
        spatial_scale (float): cells per pixel.
    """
    table, (height, width) = as_table(input), input.shape[2:]
    rois = rois.to(torch.promote_types(rois.dtype, torch.float32))
    starts, ends = rois[:, 1:3] * spatial_scale, (rois[:, 3:] + 1) * spatial_scale
    x_low, x_high = _edges(starts[:, 0], ends[:, 0], pooled_width, width)
    y_low, y_high = _edges(starts[:, 1], ends[:, 1], pooled_height, height)
    has_area = (ends > starts).all(1)
    x_high = torch.where(has_area[:, None], x_high, x_low)
    tall, wide = (_longest(low, high) for low, high in ((y_low, y_high), (x_low, x_high)))
    bins = tall * wide * pooled_height * pooled_width * input.size(1)
    for part in torch.arange(len(rois), device=rois.device).split(max(1, VALUES // bins)):
        edges = (y_low[part], y_high[part], x_low[part], x_high[part])
        values, pixels = _maxima(table, rois[part, 0].long(), (height, width), edges, (tall, wide))
        output[part], argmax[part] = values.to(output.dtype), pixels.to(argmax.dtype)


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    """Gradient by the features, added to ``grad_input`` (B, C, H, W); other arguments as in the forward pass."""
    _, channels, height, width = grad_input.shape
    channel = torch.arange(channels, device=rois.device)[:, None, None]
    plane = rois[:, 0].long().view(-1, 1, 1, 1) * channels + channel  # (N, C, 1, 1)
    pixels = plane * height * width + argmax.clamp(min=0)
    added = torch.zeros_like(grad_input, memory_format=torch.contiguous_format)
    added.view(-1).index_add_(0, pixels.flatten(), (grad_output * (argmax >= 0)).flatten())
    grad_input.add_(added)


def _edges(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First cell of each bin along an axis and the one after its last, int64, shape (N, bins) each."""
    length = ((end - start) / bins)[:, None]
    number = torch.arange(bins, device=start.device, dtype=start.dtype)
    low, high = (number * length + start[:, None]).floor(), ((number + 1) * length + start[:, None]).ceil()
    return low.clamp(min=0, max=size).long(), high.clamp(min=0, max=size).long()


def _longest(low: Tensor, high: Tensor) -> int:
    return max(1, int((high - low).max())) if low.numel() else 1


def _maxima(table: Tensor, images: Tensor, map_size: tuple[int, int], edges: tuple[Tensor, ...],
            longest: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Highest feature of each bin and its pixel, shape (N, C, P of y, P of x) each."""
    y_low, y_high, x_low, x_high = edges
    y = y_low[..., None] + torch.arange(longest[0], device=table.device)  # (N, P of y, cells of y)
    x = x_low[..., None] + torch.arange(longest[1], device=table.device)
    outside = (y >= y_high[..., None])[:, :, None, :, None] | (x >= x_high[..., None])[:, None, :, None]
    pixels = (y * map_size[1])[:, :, None, :, None] + x[:, None, :, None]  # (N, P of y, P of x, cells of y, of x)
    pixels = pixels.masked_fill(outside, 0).flatten(3)
    rows = images.view(-1, 1, 1, 1) * (map_size[0] * map_size[1]) + pixels
    features = table[rows].masked_fill(outside.flatten(3)[..., None], -torch.inf)  # (N, P, P, cells, C)
    values, cell = features.max(3)  # the first of equal ones, as mmcv
    is_empty = outside.flatten(3).all(3)[..., None]
    values, found = values.masked_fill(is_empty, 0), pixels.gather(3, cell).masked_fill(is_empty, -1)
    return values.permute(0, 3, 1, 2), found.permute(0, 3, 1, 2)
