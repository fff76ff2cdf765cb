"""Backbones that MMDetection does not have."""

from . import package_checkpoint  # noqa: F401  registers package://
from .efficientnet_lite import EfficientNetLite0

__all__ = ['EfficientNetLite0']
