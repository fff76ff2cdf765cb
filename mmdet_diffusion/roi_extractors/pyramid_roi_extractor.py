"""RoI features from the pyramid level that fits a box. Lin et al. 2017 (FPN), arXiv:1612.03144, Eq. (1)."""

import math
import warnings
from collections.abc import Callable
from functools import cached_property

import torch
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor, SingleRoIExtractor
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import ConfigType
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

import mmcv_stand_in

from ..ops import exact_float, flatten_pyramid, is_compiling, roi_align_rows

IMPLEMENTATIONS = ('auto', 'gathered', 'mmcv')

BoxFeatures = Callable[[Tensor], Tensor]
"""Takes boxes, absolute xyxy in pixels, shape (B, N, 4); gives RoI features, bins first, shape (B * N, P * P, C)."""


@MODELS.register_module()
class PyramidRoIExtractor(BaseModule):
    """RoIAlign of all boxes of a batch, each on the level that fits it.

    Args:
        featmap_strides (Sequence[int]): pixels per cell of each level that is used, finest first.
        out_channels (int): channels of every level.
        output_size (int): bins a side.
        sampling_ratio (int): samples a side in a bin.
        finest_scale (int): a box whose sides average below twice this many pixels goes to the finest level.
        implementation (str): ``gathered`` reads all levels and images at once and never asks the host; ``mmcv`` runs
            mmcv's operator level by level, as MMDetection's ``SingleRoIExtractor``, and asks the host once a level;
            ``auto`` takes ``mmcv`` on a CUDA device where mmcv's operators are compiled, ``gathered`` elsewhere and
            where torch is told to be deterministic, and logs which.

    Raises:
        ValueError: if a value is no positive integer, strides do not grow, or there is no such implementation.
    """

    def __init__(self, *, featmap_strides: tuple[int, ...] = (4, 8, 16, 32), out_channels: int = 256,
                 output_size: int = 7, sampling_ratio: int = 2, finest_scale: int = 56,
                 implementation: str = 'auto') -> None:
        super().__init__()
        strides = tuple(featmap_strides)
        if not strides or list(strides) != sorted(set(strides)) or strides[0] <= 0:
            raise ValueError(f'featmap_strides of the roi_extractor must be positive and grow, got {strides}')
        for name, value in dict(out_channels=out_channels, output_size=output_size, sampling_ratio=sampling_ratio,
                                finest_scale=finest_scale).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} of the roi_extractor must be an integer of at least 1, got {value!r}')
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f'implementation of the roi_extractor must be one of {", ".join(IMPLEMENTATIONS)}, got '
                             f'{implementation!r}')
        self.implementation = implementation
        self.featmap_strides = strides
        self.out_channels = out_channels
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.finest_scale = finest_scale
        self._has_compiled_operators = not mmcv_stand_in.is_active()
        self._has_told = False

    @property
    def num_inputs(self) -> int:
        """Number of levels that are used."""
        return len(self.featmap_strides)

    @property
    def num_bins(self) -> int:
        """Bins of a box."""
        return self.output_size**2

    def implementation_on(self, device: torch.device) -> str:
        """``gathered`` or ``mmcv``, whichever runs on a device."""
        if self.implementation != 'auto':
            return self.implementation
        fits = device.type == 'cuda' and self._has_compiled_operators
        return 'mmcv' if fits and not torch.are_deterministic_algorithms_enabled() else 'gathered'

    def map_roi_levels(self, bboxes: Tensor) -> Tensor:
        """Level of each box: ``floor(log2(sqrt(area) / finest_scale))``, clamped to the levels there are.

        Args:
            bboxes (Tensor): absolute xyxy in pixels, shape (..., 4).

        Returns:
            Tensor: int64, shape (...).
        """
        # float64: boxes on a boundary, such as 28 x 448, round to either side of it in float32.
        sides = (bboxes[..., 2:] - bboxes[..., :2]).to(exact_float(bboxes.device)).clamp(min=0)
        octave = torch.log2(sides.prod(-1).sqrt() / self.finest_scale).floor().nan_to_num(nan=0)
        return octave.clamp(min=0, max=self.num_inputs - 1).long()

    def forward(self, feats: tuple[Tensor, ...]) -> BoxFeatures:
        """Prepare the features of a batch for any number of look-ups.

        Args:
            feats (tuple[Tensor, ...]): levels of shape (B, C, H_l, W_l); levels past the last stride are left out.

        Returns:
            BoxFeatures: look-up of RoI features; gathered ones are in half precision where the levels are and no
            gradients are computed, else in float32 at least.

        Raises:
            ValueError: if there are fewer levels than strides, or their channels are not ``out_channels``.
        """
        implementation = self.implementation_on(feats[0].device)
        if not self._has_told and not is_compiling():
            print_log(f'RoI features on {feats[0].device.type}: {implementation} (implementation of the roi_extractor '
                      f'is {self.implementation!r})', logger='current')
            self._has_told = True
        if implementation == 'mmcv':
            return self._by_mmcv(feats)
        pyramid = flatten_pyramid(_used_levels(feats, self.num_inputs, self.out_channels), self.featmap_strides)

        def look_up(bboxes: Tensor) -> Tensor:
            return roi_align_rows(pyramid, bboxes, self.map_roi_levels(bboxes), self.output_size, self.sampling_ratio)

        return look_up

    @cached_property
    def _by_mmcv(self) -> 'StockRoIExtractor':
        """Built where it runs, and once; it has no weights and is not among the modules."""
        layer = dict(type='RoIAlign', output_size=self.output_size, sampling_ratio=self.sampling_ratio)
        strides = list(self.featmap_strides)
        return StockRoIExtractor(SingleRoIExtractor(layer, self.out_channels, strides, self.finest_scale))


def _used_levels(feats: tuple[Tensor, ...], num_inputs: int, out_channels: int) -> tuple[Tensor, ...]:
    if len(feats) < num_inputs:
        raise ValueError(f'the neck gives {len(feats)} levels, but featmap_strides of the roi_extractor has '
                         f'{num_inputs}; give it the stride of each level of the neck')
    channels = [int(level.size(1)) for level in feats[:num_inputs]]
    if set(channels) != {out_channels}:
        raise ValueError(f'the neck gives levels of {channels} channels, but out_channels of the roi_extractor is '
                         f'{out_channels}; set neck.out_channels, roi_extractor.out_channels and feat_channels of the '
                         'head to one number')
    return tuple(feats[:num_inputs])


class StockRoIExtractor(BaseModule):
    """Gives one of MMDetection's RoI extractors the same interface.

    Args:
        extractor (BaseRoIExtractor): for instance a ``SingleRoIExtractor``.
    """

    def __init__(self, extractor: BaseRoIExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    @property
    def featmap_strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level that is used."""
        return tuple(self.extractor.featmap_strides)

    @property
    def num_inputs(self) -> int:
        """Number of levels that are used."""
        return self.extractor.num_inputs

    @property
    def out_channels(self) -> int:
        """Channels of every level."""
        return self.extractor.out_channels

    @property
    def num_bins(self) -> int:
        """Bins of a box."""
        return math.prod(self.extractor.roi_layers[0].output_size)

    def forward(self, feats: tuple[Tensor, ...]) -> BoxFeatures:
        """As :meth:`PyramidRoIExtractor.forward`; float32, since half-precision boxes are off by whole pixels.

        Raises:
            RuntimeError: see :func:`refuse_atomic_adds`.
        """
        refuse_atomic_adds(feats[0].device)
        # mmcv's operator reads channels-last maps as if they were channels-first, without a word.
        levels = tuple(level.float().contiguous() for level in _used_levels(feats, self.num_inputs, self.out_channels))

        def look_up(bboxes: Tensor) -> Tensor:
            # mmcv's operator on the CPU refuses boxes with x2 < x1.
            ordered = torch.cat([bboxes[..., :2], torch.maximum(bboxes[..., 2:], bboxes[..., :2])], dim=-1)
            return self.extractor(levels, bbox2roi(list(ordered.float()))).flatten(2).transpose(1, 2)

        return look_up


def refuse_atomic_adds(device: torch.device) -> None:
    """Stop where torch is told to be deterministic and mmcv's operator is not: it has no way to know.

    Its backward pass on a GPU adds the gradients of a pixel in whatever order they come.

    Args:
        device (torch.device): of the features.

    Raises:
        RuntimeError: names the cure; a warning where torch's own operators only warn.
    """
    is_safe = device.type != 'cuda' or mmcv_stand_in.is_active() or not torch.is_grad_enabled()
    if is_safe or not torch.are_deterministic_algorithms_enabled():
        return
    message = ("mmcv's RoIAlign on a GPU does not give the same gradients twice, but torch is told to be deterministic "
               "(randomness.deterministic=True). Cure: roi_extractor=dict(type='PyramidRoIExtractor', "
               "implementation='gathered')")
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def build_roi_extractor(cfg: ConfigType) -> PyramidRoIExtractor | StockRoIExtractor:
    """Build the extractor of a config: ours, or one of MMDetection's behind the same interface."""
    extractor = MODELS.build(cfg)
    return StockRoIExtractor(extractor) if isinstance(extractor, BaseRoIExtractor) else extractor
