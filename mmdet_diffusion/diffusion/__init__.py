"""Diffusion arithmetic: torch only; knows nothing of boxes, images or mmdet."""

from .ddim import ddim_step, sampling_time_pairs
from .noise_schedule import CosineNoiseSchedule, cosine_alpha_bar

__all__ = ['CosineNoiseSchedule', 'cosine_alpha_bar', 'ddim_step', 'sampling_time_pairs']
