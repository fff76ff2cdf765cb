"""Multi-scale deformable attention. Zhu et al. 2021 (Deformable DETR), arXiv:2010.04159, Eq. (3)."""

import functools

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .gradients import gradients


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                           sampling_locations: Tensor, attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Weighted sum of sampled values.

    Args:
        value (Tensor): all levels one after the other, shape (B, sum of H_l * W_l, heads M, D).
        value_spatial_shapes (Tensor): H_l and W_l, int64, shape (L, 2).
        value_level_start_index (Tensor): where each level begins, which the shapes say as well, shape (L,).
        sampling_locations (Tensor): x and y as shares of a level's width and height, shape (B, Q, M, L, P, 2).
        attention_weights (Tensor): of each sample, shape (B, Q, M, L, P).
        im2col_step (int): images at once in mmcv's kernel; no matter here.

    Returns:
        Tensor: shape (B, Q, M * D).
    """
    return _attend(value_spatial_shapes.tolist(), value, sampling_locations, attention_weights)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                            sampling_locations: Tensor, attention_weights: Tensor, grad_output: Tensor,
                            grad_value: Tensor, grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Gradients by values, locations and weights, added to the last three tensors; others as in the forward pass."""
    attend = functools.partial(_attend, value_spatial_shapes.tolist())
    found = gradients(attend, (value, sampling_locations, attention_weights), grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True):
        target.add_(gradient)


def _attend(shapes: list[list[int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Level by level, so that only one level's samples are there at once besides the sum."""
    batch, queries, heads, _, points, _ = locations.shape
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * M, Q, L, P, 2), the frame of grid_sample
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B * M, 1, Q, L, P)
    levels = value.split([height * width for height, width in shapes], dim=1)
    output = value.new_zeros(())
    for index, (level, shape) in enumerate(zip(levels, shapes, strict=True)):
        image = level.permute(0, 2, 3, 1).reshape(batch * heads, -1, *shape)  # (B * M, D, H_l, W_l)
        samples = F.grid_sample(image, grids[:, :, index], padding_mode='zeros', align_corners=False)
        output = output + (samples * weights[:, :, :, index]).sum(-1)  # (B * M, D, Q)
    return output.view(batch, -1, queries).mT.to(value.dtype).contiguous()  # autocast may have widened it
