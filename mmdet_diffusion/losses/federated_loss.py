"""Federated loss: each stage learns from its own few classes. Zhou et al. 2021, arXiv:2103.07461."""

import math
import os
from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmdet.utils import ConfigType
from torch import Tensor, nn

from ..annotation_categories import read_categories

CURE = ('set model.bbox_head.criterion.loss_cls.image_counts to the annotation file of the training set, or to a list '
        'of counts')


@MODELS.register_module()
class FederatedLoss(nn.Module):
    """Restricts an element-wise class loss to some classes, drawn anew for every stage and batch.

    The classes of the matched queries are always kept. The others are drawn without replacement, with probabilities in
    proportion to ``image_count ** power``, until ``num_sampled_classes`` are kept; a class without images is never
    drawn. More classes may be present than that, and fewer may have images.

    Args:
        loss (ConfigType): such as ``FocalLoss``, or ``CrossEntropyLoss`` with ``use_sigmoid=True``; takes logits and
            one-hot targets of any shape (..., C).
        image_counts (str | PathLike | Sequence[int]): for each class the number of training images that show it, or the
            LVIS annotation file to read them from, by :meth:`read_counts`.
        num_sampled_classes (int): classes to keep.
        power (float): of the image counts.
        count_background (bool): the background counts as one of ``num_sampled_classes``, as in the authors' code; so 49
            classes are kept of 50. False keeps 50.

    Raises:
        ValueError: if a number is out of range, or the counts are neither a file nor a list of numbers.
    """

    def __init__(self, *, loss: ConfigType, image_counts: str | os.PathLike | Sequence[int],
                 num_sampled_classes: int = 50, power: float = 0.5, count_background: bool = True) -> None:
        super().__init__()
        if not isinstance(num_sampled_classes, int) or num_sampled_classes < 1:
            raise ValueError('num_sampled_classes of FederatedLoss must be an integer of at least 1, got '
                             f'{num_sampled_classes!r}')
        if not 0 <= power < float('inf'):
            raise ValueError(f'power of FederatedLoss must be a number of at least 0, got {power!r}')
        self.loss = MODELS.build(loss)
        self.num_kept = num_sampled_classes - int(count_background)
        self.power = power
        self.image_counts = str(image_counts) if isinstance(image_counts, os.PathLike) else image_counts
        # No buffer: one that comes later shifts those that mmengine's averaged model pairs by their place.
        self.log_weights = None
        if not isinstance(self.image_counts, str):
            self.log_weights = class_log_weights(image_counts, power)

    def forward(self, cls_scores: Tensor, targets: Tensor, reduction_override: str = 'none') -> Tensor:
        """Loss of every logit; 0 at the classes that are not kept.

        Args:
            cls_scores (Tensor): logits, shape (S, Q, C), Q the queries of all images.
            targets (Tensor): one-hot, zeros for the background, shape (S, Q, C).
            reduction_override (str): of the interface of MMDetection's losses; only ``none`` has a meaning here.

        Returns:
            Tensor: shape (S, Q, C).

        Raises:
            FileNotFoundError: if the annotation file is not there.
            ValueError: if it holds no image counts, their number is not C, or another reduction is asked for.
        """
        if reduction_override != 'none':
            raise ValueError(f"FederatedLoss only takes reduction_override='none', got {reduction_override!r}")
        log_weights = self._log_weights_for(cls_scores)
        present = targets.amax(1) > 0
        kept = kept_classes(present, log_weights, self.draw_gumbel(present), self.num_kept)
        loss = self.loss(cls_scores, targets, reduction_override='none')
        return loss.masked_fill(~kept[:, None], 0)

    def draw_gumbel(self, present: Tensor) -> Tensor:
        """All that is random: standard Gumbel noise, float32, of the shape of ``present``, (S, C)."""
        return -torch.empty(present.shape, device=present.device).exponential_().log()

    def read_counts(self) -> None:
        """Read the image counts where they come from a file; all processes together.

        ``DatasetCheckHook`` calls it before training, since a file of LVIS takes long. Without the hook the first
        loss does.

        Raises:
            FileNotFoundError: if the annotation file is not there.
            ValueError: if it holds no image counts.
        """
        if self.log_weights is None:
            self.log_weights = class_log_weights(read_image_counts(self.image_counts), self.power)

    def _log_weights_for(self, cls_scores: Tensor) -> Tensor:
        self.read_counts()
        if len(self.log_weights) != cls_scores.size(-1):
            origin = self.image_counts if isinstance(self.image_counts, str) else 'image_counts'
            raise ValueError(f'{origin} of FederatedLoss is for {len(self.log_weights)} classes, but the head has '
                             f'num_classes={cls_scores.size(-1)}. Give the counts of the data set trained on')
        self.log_weights = self.log_weights.to(cls_scores.device)
        return self.log_weights


def kept_classes(present: Tensor, log_weights: Tensor, gumbel: Tensor, num_kept: int) -> Tensor:
    """Classes that a stage learns from.

    The highest sums of log weight and Gumbel noise are a draw without replacement in proportion to the weights
    (Kool et al. 2019, arXiv:1903.06059); present classes come before all others.

    Args:
        present (Tensor): whether a matched query of the stage has the class, bool, shape (S, C).
        log_weights (Tensor): logarithm of each class's weight, -inf where it is never drawn, shape (C,).
        gumbel (Tensor): standard Gumbel noise, shape (S, C).
        num_kept (int): classes to keep.

    Returns:
        Tensor: bool, shape (S, C): the present classes, and drawn ones until there are ``num_kept`` or none is left.
    """
    priority = (log_weights + gumbel).masked_fill(present, torch.inf)
    best = priority.topk(min(num_kept, present.size(1)), dim=1).indices
    chosen = torch.zeros_like(present).scatter_(1, best, True)
    return present | chosen & (log_weights > -torch.inf)


def class_log_weights(image_counts: Sequence[int], power: float) -> Tensor:
    """Logarithm of ``image_count ** power``, -inf for a class without images; float32, shape (C,).

    Raises:
        ValueError: if they are no list of finite numbers of at least 0.
    """
    try:
        counts = torch.tensor(image_counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):  # torch names neither the setting nor the value
        counts = torch.tensor(math.nan)
    if counts.dim() != 1 or not (counts.isfinite() & (counts >= 0)).all():
        raise ValueError('image_counts of FederatedLoss must be a list of finite numbers of at least 0, got '
                         f'{image_counts!r}')
    return torch.where(counts > 0, power * counts.log(), -torch.inf).float()


def read_image_counts(ann_file: str) -> list[int]:
    """Image counts of an LVIS annotation file, in the order of its categories, which is that of the labels.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is not of LVIS's form, or a category has no ``image_count`` of at least 0.
    """
    try:
        categories = read_categories(ann_file)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f'FederatedLoss reads from an annotation file how many images show each class, but {error}; '
                          f'{CURE}') from error
    counts = [category.get('image_count') for category in categories]
    lacking = [category.get('name') for category, count in zip(categories, counts, strict=True)
               if not isinstance(count, int) or count < 0]
    if lacking:
        raise ValueError(f'{ann_file} gives no image_count for {len(lacking)} categories, {lacking[0]!r} among them; '
                         f'{CURE}')
    return counts
