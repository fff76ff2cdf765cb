"""Cosine noise schedule. Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (17).

``alpha_bar_t = prod_{s <= t} (1 - beta_s)`` with ``1 - beta_t = f(t + 1) / f(t)`` and
``f(t) = cos^2((t / T + s) / (1 + s) * pi / 2)``.

The table lives on the host in float64: what is derived from it can cancel in float32. Tensors stay float32.
"""

import math

import torch
from torch import Tensor

from ..number_checks import is_integer


def cosine_alpha_bar(num_timesteps: int, *, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Cumulative signal share of every step of the forward process.

    Args:
        num_timesteps (int): T, the number of steps of the forward process.
        offset (float): s of Eq. (17); keeps the first betas from vanishing.
        max_beta (float): upper bound of each beta, as in the paper. It alone makes the last value what it is.

    Returns:
        Tensor: alpha_bar, float64 on the host, shape (T,), strictly decreasing in (0, 1).

    Raises:
        ValueError: if ``num_timesteps`` is less than 1.
    """
    if not is_integer(num_timesteps) or num_timesteps < 1:
        raise ValueError(f'num_train_timesteps must be an integer of at least 1, got {num_timesteps!r}')
    progress = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    signal = torch.cos((progress + offset) / (1 + offset) * (math.pi / 2)) ** 2
    betas = (1 - signal[1:] / signal[:-1]).clamp(max=max_beta)
    return torch.cumprod(1 - betas, dim=0)


class CosineNoiseSchedule:
    """The forward process ``x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise`` (paper Eq. (1)).

    Args:
        num_timesteps (int): T.

    Attributes:
        alpha_bar (Tensor): float64 on the host, shape (T,).
    """

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps
        self.alpha_bar = cosine_alpha_bar(num_timesteps)

    def signal_share(self, t: int) -> float:
        """alpha_bar at step ``t``; 1 at ``t = -1``, where nothing is noisy."""
        return 1.0 if t < 0 else self.alpha_bar[t].item()

    def add_noise(self, x_start: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy sample of each image at its own step.

        Args:
            x_start (Tensor): clean signal, float32, shape (B, ...).
            noise (Tensor): standard normal, same shape.
            timesteps (Tensor): int64 on the host, shape (B,), in 0..T-1.

        Returns:
            Tensor: x_t, float32, same shape; not clamped.
        """
        share = self.alpha_bar[timesteps].view(-1, *[1] * (x_start.dim() - 1))
        # The type first: a device may have no float64.
        signal_rate, noise_rate = (rate.sqrt().to(x_start.dtype).to(x_start.device) for rate in (share, 1 - share))
        return signal_rate * x_start + noise_rate * noise
