"""Decoder of DiffusionDet."""

from .diffusion_stage import DynamicDiffusionStage
from .dynamic_diffusion_head import DynamicDiffusionHead
from .sampling_settings import SamplingSettings

__all__ = ['DynamicDiffusionHead', 'DynamicDiffusionStage', 'SamplingSettings']
