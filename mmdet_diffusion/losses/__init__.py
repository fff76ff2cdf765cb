"""Training criterion."""

from .diffusiondet_criterion import DiffusionDetCriterion

__all__ = ['DiffusionDetCriterion']
