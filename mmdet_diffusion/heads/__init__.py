"""Decoder of DiffusionDet."""

from ..sampling_settings import SamplingSettings
from .diffusion_stage import DynamicDiffusionStage
from .dynamic_diffusion_head import DynamicDiffusionHead

__all__ = ['DynamicDiffusionHead', 'DynamicDiffusionStage', 'SamplingSettings']
