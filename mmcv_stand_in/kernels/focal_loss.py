"""Sigmoid focal loss. Lin et al. 2017, arXiv:1708.02002, Eq. (5).

``loss = -alpha (1 - p)^gamma log p`` for the class of the target, ``-(1 - alpha) p^gamma log(1 - p)`` for the others.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Loss of each logit.

    Args:
        input (Tensor): logits, shape (N, C).
        target (Tensor): class indices, C for background, int64, shape (N,).
        weight (Tensor): of each class, shape (C,), for the logits whose target it is; or empty. Background has none and
            counts once (mmcv's kernel reads past the last weight there).
        output (Tensor): receives the losses, shape (N, C).
        gamma (float): exponent of the focus.
        alpha (float): weight of the target's class.
    """
    (p, log_p), (not_p, log_not_p) = _probability(input), _probability(-input)
    positive = not_p.pow(gamma) * log_p
    negative = p.pow(gamma) * log_not_p
    output.copy_(_weighted(positive, negative, target, weight, alpha))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Derivative of each loss by its logit, into ``grad_input``; arguments as in the forward pass."""
    (p, log_p), (not_p, log_not_p) = _probability(input), _probability(-input)
    positive = not_p.pow(gamma) * (not_p - gamma * p * log_p)
    negative = p.pow(gamma) * (gamma * not_p * log_not_p - p)
    grad_input.copy_(_weighted(positive, negative, target, weight, alpha))


def _probability(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid and its logarithm, in float32 at least; as mmcv's, the logarithm stops at the least normal number.

    That of 1 - p is asked for by the negative logits: the difference would cancel where p is almost 1.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.sigmoid(), F.logsigmoid(logits).clamp(min=math.log(torch.finfo(torch.float32).tiny))


def _weighted(positive: Tensor, negative: Tensor, target: Tensor, weight: Tensor, alpha: float) -> Tensor:
    classes = torch.arange(positive.size(1), device=target.device)
    values = torch.where(target[:, None] == classes, -alpha * positive, -(1 - alpha) * negative)
    if not weight.numel():
        return values
    return values * torch.cat([weight, weight.new_ones(1)])[target][:, None]
