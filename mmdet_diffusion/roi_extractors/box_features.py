"""Look-ups of RoI features in the levels of a batch, and how autograd keeps them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.structures.bbox import bbox2roi
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..ops import FlatPyramid, roi_align_rows

# Smaller features are kept: they weigh less than the time to gather them again.
LARGE = 2**24  # bytes


class BoxFeatures:
    """RoI features of any boxes, on levels that are given."""

    def __call__(self, bboxes: Tensor) -> Tensor:
        """Look up.

        Args:
            bboxes (Tensor): absolute xyxy in pixels, shape (B, N, 4).

        Returns:
            Tensor: bins first, shape (B * N, P * P, C).
        """
        raise NotImplementedError

    def not_kept(self, features: Tensor, bboxes: Tensor) -> AbstractContextManager:
        """What is computed with features inside keeps them for the backward pass, or what is cheaper to keep.

        Args:
            features (Tensor): what the look-up of ``bboxes`` gave.
            bboxes (Tensor): must not be written into before the backward pass.

        Returns:
            AbstractContextManager: to be entered for the computation.
        """
        return nullcontext()


class GatheredFeatures(BoxFeatures):
    """By one sum of gathered rows.

    It is so cheap that large features are gathered once more in the backward pass: those of 1000 boxes, 256 channels
    and 6 stages would be 300 MB.

    Args:
        pyramid (FlatPyramid): the levels.
        level_of (Callable[[Tensor], Tensor]): from boxes (B, N, 4) to levels (B, N).
        output_size (int): bins a side.
        sampling_ratio (int): samples a side in a bin.
    """

    def __init__(self, pyramid: FlatPyramid, level_of: Callable[[Tensor], Tensor], output_size: int,
                 sampling_ratio: int) -> None:
        self.pyramid, self.level_of = pyramid, level_of
        self.output_size, self.sampling_ratio = output_size, sampling_ratio

    def __call__(self, bboxes: Tensor) -> Tensor:
        """As :meth:`BoxFeatures.__call__`."""
        return roi_align_rows(self.pyramid, bboxes, self.level_of(bboxes), self.output_size, self.sampling_ratio)

    def not_kept(self, features: Tensor, bboxes: Tensor) -> AbstractContextManager:
        """As :meth:`BoxFeatures.not_kept`."""
        large = features.numel() * features.element_size() >= LARGE
        if not (large and features.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return nullcontext()
        memory = features.untyped_storage().data_ptr()

        def pack(saved: Tensor) -> Tensor | tuple:
            if saved.untyped_storage().data_ptr() != memory:
                return saved
            return saved.size(), saved.stride(), saved.storage_offset()

        @torch.no_grad()
        def unpack(kept: Tensor | tuple) -> Tensor:
            return kept if isinstance(kept, Tensor) else self(bboxes).as_strided(*kept)

        return saved_tensors_hooks(pack, unpack)


class StockFeatures(BoxFeatures):
    """By one of MMDetection's RoI extractors.

    Args:
        extractor (BaseRoIExtractor): such as ``SingleRoIExtractor``.
        levels (tuple[Tensor, ...]): float32, contiguous, shape (B, C, H_l, W_l).
    """

    def __init__(self, extractor: BaseRoIExtractor, levels: tuple[Tensor, ...]) -> None:
        self.extractor, self.levels = extractor, levels

    def __call__(self, bboxes: Tensor) -> Tensor:
        """As :meth:`BoxFeatures.__call__`."""
        # mmcv's operator on the CPU refuses boxes with x2 < x1.
        ordered = torch.cat([bboxes[..., :2], torch.maximum(bboxes[..., 2:], bboxes[..., :2])], dim=-1)
        return self.extractor(self.levels, bbox2roi(list(ordered.float()))).flatten(2).transpose(1, 2)
