"""Training criterion."""

from .diffusiondet_criterion import DiffusionDetCriterion
from .federated_loss import FederatedLoss

__all__ = ['DiffusionDetCriterion', 'FederatedLoss']
