"""The standard normal law: from values to probabilities and back."""

import math

import torch
from torch import Tensor


def probability(values: Tensor) -> Tensor:
    """Share of the law below each value, in [0, 1]; float32, any shape."""
    return (1 + torch.erf(values / math.sqrt(2))) / 2


def quantile(probabilities: Tensor) -> Tensor:
    """Value below which such a share of the law lies, infinite at 0 and 1; float32, any shape."""
    return math.sqrt(2) * torch.erfinv(2 * probabilities - 1)
