"""Look-ups of RoI features in the levels of a batch, and how autograd keeps them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from ..ops import FlatPyramid, is_compiling, roi_align_rows

BoxFeatures = Callable[[Tensor], Tensor]
"""Takes boxes, absolute xyxy in pixels, shape (B, N, 4); gives RoI features, bins first, shape (B * N, P * P, C)."""

# Smaller features are kept: they weigh less than the time to gather them again.
LARGE = 2**24  # bytes


class GatheredFeatures:
    """RoI features of any boxes by one sum of gathered rows; a :data:`BoxFeatures`.

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
        """Absolute xyxy in pixels, shape (B, N, 4), to features, shape (B * N, P * P, C)."""
        return roi_align_rows(self.pyramid, bboxes, self.level_of(bboxes), self.output_size, self.sampling_ratio)

    def not_kept(self, features: Tensor, bboxes: Tensor, look_ups: int) -> AbstractContextManager:
        """What is computed inside with large features gathers them again in the backward pass instead of keeping them.

        Gathering is cheap, and the features of 1000 boxes, 256 channels and 6 stages are 300 MB. The table that they
        are gathered from has to stay for it, so nothing is done where all features are smaller than the table.
        Features that are written into after the look-up are kept as they are. Hooks on saved tensors that were set
        outside (by ``save_on_cpu``, or a checkpoint around the head) do not see what is saved inside: torch asks the
        innermost only.

        Args:
            features (Tensor): what the look-up of ``bboxes`` gave.
            bboxes (Tensor): as looked up.
            look_ups (int): whose features would be kept until the backward pass.

        Returns:
            AbstractContextManager: to be entered for the computation.

        Raises:
            RuntimeError: in the backward pass, if ``bboxes`` was written into since.
        """
        table, size = self.pyramid.table, features.numel() * features.element_size()
        pays = size >= LARGE and look_ups * size > table.numel() * table.element_size()
        if not (pays and features.requires_grad and torch.is_grad_enabled()) or is_compiling():
            return nullcontext()
        memory, version = StorageWeakRef(features.untyped_storage()), features._version
        version_of_boxes = bboxes._version

        def pack(saved: Tensor) -> Tensor | tuple:
            if saved.untyped_storage()._cdata != memory.cdata or saved._version != version:
                return saved
            return saved.size(), saved.stride(), saved.storage_offset()

        @torch.no_grad()
        def unpack(kept: Tensor | tuple) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            if bboxes._version != version_of_boxes:
                raise RuntimeError('boxes were written into between their RoI features and the backward pass, which '
                                   'has to gather the features of the former boxes again; clone the boxes first')
            return self(bboxes).as_strided(*kept)

        return saved_tensors_hooks(pack, unpack)
