"""Boxes as diffusion signal. Chen et al. 2023, arXiv:2211.09788, Sec. 3.2 (signal scaling).

A box in normalised cxcywh, each value in [0, 1], becomes ``(2 b - 1) s``, each value in [-s, s].
"""

from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor

from ..number_checks import is_number


class SignalBBoxCoder:
    """Maps boxes between pixels and the signal frame.

    Args:
        signal_scale (float): s, the signal's half range.

    Raises:
        ValueError: if ``signal_scale`` is not positive.
    """

    def __init__(self, signal_scale: float) -> None:
        if not is_number(signal_scale) or not 0 < signal_scale < float('inf'):
            raise ValueError(f'signal_scale must be a number greater than 0, got {signal_scale!r}; '
                             'the paper uses 2.0 (COCO)')
        self.signal_scale = signal_scale

    def normalized_to_signal(self, cxcywh: Tensor) -> Tensor:
        """Normalised cxcywh in [0, 1], shape (..., 4), to the signal frame."""
        return (cxcywh * 2 - 1) * self.signal_scale

    def signal_to_normalized(self, signal: Tensor) -> Tensor:
        """Signal, clamped first, to normalised cxcywh in [0, 1], shape (..., 4)."""
        return (self.clamp(signal) / self.signal_scale + 1) / 2

    def clamp(self, signal: Tensor) -> Tensor:
        """Limit a signal to the range that boxes can have."""
        return signal.clamp(-self.signal_scale, self.signal_scale)

    def encode(self, bboxes: Tensor, img_whwh: Tensor) -> Tensor:
        """Boxes to clamped signal.

        Args:
            bboxes (Tensor): absolute xyxy in pixels, float32, shape (..., 4).
            img_whwh (Tensor): width, height, width, height in pixels, broadcastable to ``bboxes``.

        Returns:
            Tensor: signal in [-s, s], float32, shape (..., 4).
        """
        return self.clamp(self.normalized_to_signal(bbox_xyxy_to_cxcywh(bboxes / img_whwh)))

    def decode(self, signal: Tensor, img_whwh: Tensor) -> Tensor:
        """Signal, clamped first, to boxes.

        Args:
            signal (Tensor): any finite values, float32, shape (..., 4).
            img_whwh (Tensor): width, height, width, height in pixels, broadcastable to ``signal``.

        Returns:
            Tensor: absolute xyxy in pixels, float32, shape (..., 4); x2 >= x1 and y2 >= y1. Corners may lie outside
            the image by half its size.
        """
        return bbox_cxcywh_to_xyxy(self.signal_to_normalized(signal)) * img_whwh
