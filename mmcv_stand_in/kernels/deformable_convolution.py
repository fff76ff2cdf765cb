"""Deformable convolution. Dai et al. 2017, arXiv:1703.06211, Eq. (2); Zhu et al. 2019 (v2), arXiv:1811.11168, Eq. (1).

``y(p) = sum_k w_k x(p + p_k + offset_k) mask_k``, x read bilinearly and zero outside the image. An image's samples make
the columns of a matrix, and the weights times those columns are the output.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .torchvision_operators import torchvision_operator
from .weighted_rows import as_table, sum_rows


class Settings(NamedTuple):
    """Of a convolution; pairs are those of y and x.

    Attributes:
        stride (tuple[int, int]): cells from one output to the next.
        padding (tuple[int, int]): cells around the image.
        dilation (tuple[int, int]): cells from one tap of the kernel to the next.
        groups (int): of channels that are convolved apart.
        deform_groups (int): of channels that have offsets of their own, G.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int


def deformable_convolution(settings: Settings, images: Tensor, offset: Tensor, mask: Tensor | None,
                           weight: Tensor) -> Tensor:
    """Convolve, differentiable in all tensors.

    Args:
        settings (Settings): see there.
        images (Tensor): shape (B, C, H, W).
        offset (Tensor): y and x of each tap in cells, shape (B, G * K * 2, H', W').
        mask (Tensor | None): factor of each tap, shape (B, G * K, H', W').
        weight (Tensor): shape (O, C / groups, height, width), K = height * width.

    Returns:
        Tensor: shape (B, O, H', W').
    """
    by_torchvision = torchvision_operator('deform_conv2d', images.device.type)
    # Half precision would not do for positions; and mmcv's kernels do not take part in autocast.
    with torch.autocast(images.device.type, enabled=False):
        wide = torch.promote_types(images.dtype, torch.float32)
        images, offset, weight = (tensor.to(wide) for tensor in (images, offset, weight))
        mask = None if mask is None else mask.to(wide)
        if by_torchvision is not None:
            return by_torchvision(images, offset, weight, None, settings.stride, settings.padding, settings.dilation,
                                  mask)
        masks = [None] * len(images) if mask is None else mask
        return torch.stack([_convolve(settings, *image, weight)
                            for image in zip(images, offset, masks, strict=True)])


def _convolve(settings: Settings, image: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor) -> Tensor:
    """One image: (C, H, W) -> (O, H', W')."""
    columns = _columns(settings, image, offset, mask, tuple(weight.shape[2:]))
    columns = columns.view(settings.groups, -1, columns.size(-1))
    return (weight.reshape(settings.groups, -1, columns.size(1)) @ columns).view(-1, *offset.shape[1:])


def _columns(settings: Settings, image: Tensor, offset: Tensor, mask: Tensor | None,
             kernel_size: tuple[int, int]) -> Tensor:
    """What each tap reads for each output, shape (C * K, H' * W')."""
    groups = settings.deform_groups
    _, height, width = image.shape
    y, x = _positions(settings, offset, kernel_size)  # (G, K, L)
    y_cell, y_weight = _cells_and_weights(y, height)
    x_cell, x_weight = _cells_and_weights(x, width)
    group = torch.arange(groups, device=image.device).view(-1, 1, 1, 1)
    rows = (((group * height + y_cell) * width)[..., :, None] + x_cell[..., None, :]).view(-1, 4)
    weights = y_weight[..., :, None] * x_weight[..., None, :]  # (G, K, L, 2, 2)
    if mask is not None:
        weights = weights * mask.reshape(*y.shape, 1, 1)
    table = as_table(image.reshape(groups, -1, height, width))
    samples = sum_rows(table, rows, weights.view(-1, 4))  # (G * K * L, C / G)
    return samples.view(*y.shape, -1).permute(0, 3, 1, 2).reshape(-1, y.size(2))


def _positions(settings: Settings, offset: Tensor, kernel_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """y and x of each sample in cells, shape (G, K, H' * W') each."""
    axes = []
    for axis in (0, 1):
        steps, taps = (torch.arange(number, device=offset.device, dtype=offset.dtype)
                       for number in (offset.size(1 + axis), kernel_size[axis]))
        axes.append(steps * settings.stride[axis] - settings.padding[axis] + taps[:, None] * settings.dilation[axis])
    y, x = axes  # (taps, steps)
    offset = offset.reshape(settings.deform_groups, *kernel_size, 2, *offset.shape[1:])
    y = offset[:, :, :, 0] + y[:, None, :, None]
    x = offset[:, :, :, 1] + x[None, :, None, :]
    return y.flatten(3).flatten(1, 2), x.flatten(3).flatten(1, 2)


def _cells_and_weights(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cells on both sides along an axis, int64, and their weights, 0 for cells outside, shape (..., 2) each."""
    lower = position.detach().floor()
    inside = (position > -1) & (position < size)
    share = position - lower
    cells = torch.stack([lower, lower + 1], dim=-1)
    weights = torch.stack([1 - share, share], dim=-1)
    is_there = (cells >= 0) & (cells < size) & inside[..., None]
    return cells.clamp(min=0, max=size - 1).nan_to_num().long(), torch.where(is_there, weights, 0)
