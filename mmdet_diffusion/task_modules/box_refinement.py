"""Boxes moved by predicted deltas. Girshick et al. 2014 (R-CNN), arXiv:1311.2524, Appendix C."""

import math

import torch
from torch import Tensor

CENTRE_DELTA_WEIGHT = 2.0  # those of the size weigh 1
MAX_BOX_SIZE = 100_000.0  # pixels; six stages of growth without a bound would overflow
MAX_LOG_GROWTH = math.log(MAX_BOX_SIZE / 16)


def refine_boxes(bboxes: Tensor, deltas: Tensor) -> Tensor:
    """Apply deltas of centre (in box sizes) and size (log) to boxes.

    Args:
        bboxes (Tensor): absolute xyxy in pixels, float32, shape (..., 4).
        deltas (Tensor): dx, dy, dw, dh times (2, 2, 1, 1), any float type, shape (..., 4).

    Returns:
        Tensor: absolute xyxy in pixels, dtype of ``bboxes``, shape (..., 4); sizes and centres are at most
        ``MAX_BOX_SIZE``.
    """
    # Under autocast the deltas come in half precision.
    deltas = deltas.to(bboxes.dtype)
    sizes = bboxes[..., 2:] - bboxes[..., :2]
    centres = bboxes[..., :2] + 0.5 * sizes + deltas[..., :2] / CENTRE_DELTA_WEIGHT * sizes
    sizes = sizes * deltas[..., 2:].clamp(max=MAX_LOG_GROWTH).exp()
    centres, half = centres.clamp(-MAX_BOX_SIZE, MAX_BOX_SIZE), 0.5 * sizes.clamp(max=MAX_BOX_SIZE)
    return torch.cat([centres - half, centres + half], dim=-1)
