"""Detector."""

from .diffusiondet import DiffusionDet

__all__ = ['DiffusionDet']
