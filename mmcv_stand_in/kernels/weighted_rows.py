"""Weighted sums of rows of a table, and the same sums the other way round. A bilinear sample is one of four rows."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def sum_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """``out[k] = sum_j weights[k, j] table[rows[k, j]]``; differentiable in table and weights.

    Args:
        table (Tensor): float32 or float64, shape (R, C).
        rows (Tensor): int32 or int64, shape (K, J).
        weights (Tensor): dtype of the table, shape (K, J).

    Returns:
        Tensor: shape (K, C).
    """
    return F.embedding_bag(rows, table, mode='sum', per_sample_weights=weights)


def add_to_rows(table: Tensor, rows: Tensor, weights: Tensor, values: Tensor) -> None:
    """``table[rows[k, j]] += weights[k, j] values[k]``: the derivative of :func:`sum_rows` by the table.

    Args:
        table (Tensor): is changed, float32 or float64, shape (R, C).
        rows (Tensor): int32 or int64, shape (K, J).
        weights (Tensor): shape (K, J).
        values (Tensor): shape (K, C).
    """
    # Sorted by row, the pairs of one row lie together, and its sum is one of rows of ``values``.
    row, order = rows.flatten().sort()
    touched, counts = row.unique_consecutive(return_counts=True)
    sums = F.embedding_bag(order // rows.size(1), values, counts.cumsum(0) - counts, mode='sum',
                           per_sample_weights=weights.flatten()[order])
    table.index_add_(0, touched, sums)


def as_table(images: Tensor) -> Tensor:
    """Pixels as rows, image by image: (B, C, H, W) -> (B * H * W, C); half precision is widened."""
    rows = images.permute(0, 2, 3, 1).flatten(0, 2)
    return rows.to(torch.promote_types(images.dtype, torch.float32))


def as_images(table: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """The way back: (B * H * W, C) -> (B, C, H, W)."""
    batch, channels, height, width = shape
    return table.view(batch, height, width, channels).permute(0, 3, 1, 2)
