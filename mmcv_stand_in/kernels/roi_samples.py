"""Where the samples of RoIAlign lie, and the pixels that they weigh. He et al. 2017, arXiv:1703.06870, Sec. 3."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

PAIRS = 2**22  # of a pixel and a weight at once: 48 MB of them


class RoIGrid(NamedTuple):
    """Boxes on a feature map and the grid of samples in each of their bins; the dtype is that of the features.

    Attributes:
        images (Tensor): index of each box's image, int64, shape (N,).
        starts (Tensor): x1 and y1 in cells, shape (N, 2).
        bins (Tensor): width and height of a bin in cells, shape (N, 2).
        counts (Tensor | int): samples in a bin along x and y, int64, shape (N, 2); one number where it is the same for
            all, so that nothing has to wait for its values.
        output_size (tuple[int, int]): bins along y and x.
        map_size (tuple[int, int]): height and width of the feature map in cells.
    """

    images: Tensor
    starts: Tensor
    bins: Tensor
    counts: Tensor | int
    output_size: tuple[int, int]
    map_size: tuple[int, int]

    def of(self, boxes: Tensor) -> 'RoIGrid':
        """Some of the boxes, by index."""
        counts = self.counts if isinstance(self.counts, int) else self.counts[boxes]
        return RoIGrid(self.images[boxes], self.starts[boxes], self.bins[boxes], counts, self.output_size,
                       self.map_size)


def roi_grid(rois: Tensor, output_size: tuple[int, int], map_size: tuple[int, int], spatial_scale: float,
             sampling_ratio: int, aligned: bool) -> RoIGrid:
    """Lay the grid of each box, with mmcv's order of operations, since positions are rounded.

    Args:
        rois (Tensor): index of the image and absolute xyxy in pixels, shape (N, 5).
        output_size (tuple[int, int]): bins along y and x.
        map_size (tuple[int, int]): height and width of the feature map in cells.
        spatial_scale (float): cells per pixel.
        sampling_ratio (int): samples a side in a bin; 0: as many as a bin has cells, rounded up.
        aligned (bool): whether a cell's value is that of its centre, half a cell from its corner.

    Returns:
        RoIGrid: see there.
    """
    rois = rois.to(torch.promote_types(rois.dtype, torch.float32))
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    starts, sizes = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:  # aligned, a box may end before it starts, as in mmcv's kernel for GPUs; that for CPUs refuses it
        sizes = sizes.clamp(min=1)
    bins = sizes / sizes.new_tensor(output_size[::-1])
    # A box with a corner that is not finite has no samples.
    counts = sampling_ratio if sampling_ratio > 0 else bins.nan_to_num(0, 0, 0).ceil().clamp(min=0).long()
    return RoIGrid(rois[:, 0].long(), starts, bins, counts, output_size, map_size)


def equal_grids(grid: RoIGrid, pairs_a_sample: int = 4) -> Iterator[tuple[Tensor, int, int]]:
    """Boxes that have as many samples, few enough at a time.

    Args:
        grid (RoIGrid): of all boxes.
        pairs_a_sample (int): pixels that a sample weighs.

    Yields:
        tuple[Tensor, int, int]: indices of the boxes, int64, and their samples in a bin along x and y, at least 1.
    """
    for boxes, along_x, along_y in _kinds(grid):
        if along_x * along_y == 0:  # a box without area
            continue
        pairs = pairs_a_sample * along_x * along_y * grid.output_size[0] * grid.output_size[1]
        for part in boxes.split(max(1, PAIRS // pairs)):
            yield part, along_x, along_y


def _kinds(grid: RoIGrid) -> Iterator[tuple[Tensor, int, int]]:
    """Indices of the boxes of each number of samples, and the numbers."""
    if isinstance(grid.counts, int):
        yield torch.arange(len(grid.images), device=grid.images.device), grid.counts, grid.counts
        return
    kinds, kind = grid.counts.unique(dim=0, return_inverse=True)
    for index, (along_x, along_y) in enumerate(kinds.tolist()):
        yield (kind == index).nonzero()[:, 0], along_x, along_y


def axis_positions(grid: RoIGrid, axis: int, count: int) -> Tensor:
    """Positions of the samples along x (axis 0) or y (axis 1) in cells, shape (N, bins, count)."""
    start, size = grid.starts[:, axis, None, None], grid.bins[:, axis, None, None]
    number = torch.arange(grid.output_size[1 - axis], device=start.device, dtype=start.dtype)
    sample = torch.arange(count, device=start.device, dtype=start.dtype) + 0.5
    return start + number[:, None] * size + sample * size / count


def cells_and_weights(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells on both sides of each position along an axis, and their weights.

    Args:
        position (Tensor): in cells, any shape (...).
        size (int): cells of the axis.

    Returns:
        tuple[Tensor, Tensor]: cells, int64, and weights, shape (..., 2). Positions more than one cell outside weigh
        nothing; nearer ones take the border cell.
    """
    inside = (position >= -1) & (position <= size)
    position = position.clamp(min=0, max=size - 1)
    lower = position.long().clamp(min=0, max=size - 1)  # again, for NaN
    share = position - lower
    cells = torch.stack([lower, (lower + 1).clamp(max=size - 1)], dim=-1)
    return cells, torch.stack([1 - share, share], dim=-1) * inside[..., None]
