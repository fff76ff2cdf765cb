"""Detector, and its test-time augmentation."""

from .diffusiondet import DiffusionDet
from .tta_model import DiffusionDetTTAModel

__all__ = ['DiffusionDet', 'DiffusionDetTTAModel']
