"""Normal noise that covers its range evenly: randomly shifted Sobol points (Cranley and Patterson 1976)."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from .normal_law import probability, quantile

SMALLEST = 1e-6  # probability; the normal quantile of 0 is infinite


def even_noise(shift: Tensor, num_boxes: int) -> Tensor:
    """Start boxes that leave fewer gaps than independent ones.

    Each value alone is standard normal, as ``shift`` is random; those of one image depend on each other.

    Args:
        shift (Tensor): standard normal, float32, shape (B, 1, 4).
        num_boxes (int): N.

    Returns:
        Tensor: float32, shape (B, N, 4).
    """
    points = (_sobol_points(num_boxes, shift.device) + probability(shift)) % 1
    return quantile(points.clamp(SMALLEST, 1 - SMALLEST))


@lru_cache(maxsize=8)
def _sobol_points(num_boxes: int, device: torch.device) -> Tensor:
    """The first N points of the unit cube in 4 dimensions, shape (N, 4); on the device once."""
    return SobolEngine(4).draw(num_boxes).to(device)
