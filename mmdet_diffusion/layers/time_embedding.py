"""Sinusoidal embedding of the diffusion step. Ho et al. 2020, arXiv:2006.11239, Appendix B."""

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(t: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """``[sin(t f_i), cos(t f_i)]`` with ``f_i = 10000^(-i / (channels / 2 - 1))``.

    Args:
        t (Tensor): steps, any number type, shape (B,).
        channels (int): even, at least 4.
        dtype (torch.dtype): of the result.

    Returns:
        Tensor: shape (B, channels).
    """
    half = channels // 2
    precision = torch.promote_types(dtype, torch.float32)  # angles reach T, of which half precision keeps no fraction
    exponent = torch.arange(half, device=t.device, dtype=precision) / (half - 1)
    angles = t.to(precision)[:, None] * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


class TimeEmbedding(nn.Module):
    """Embedding of the step that all stages share.

    Args:
        feat_channels (int): channels of the proposal features; the embedding has four times as many.

    Raises:
        ValueError: if ``feat_channels`` is odd or less than 4.
    """

    def __init__(self, feat_channels: int) -> None:
        super().__init__()
        if feat_channels < 4 or feat_channels % 2:
            raise ValueError(f'feat_channels must be even and at least 4, got {feat_channels}')
        self.feat_channels = feat_channels
        self.mlp = nn.Sequential(
            nn.Linear(feat_channels, 4 * feat_channels), nn.GELU(), nn.Linear(4 * feat_channels, 4 * feat_channels))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.mlp[0].weight.dtype

    def forward(self, t: Tensor) -> Tensor:
        """Steps, shape (B,), to embeddings, shape (B, 4 * feat_channels)."""
        return self.mlp(sinusoidal_embedding(t, self.feat_channels, self.dtype))
