"""Boxes as diffusion signal and back, on arrays: the frame of the paper, and that of a data set's sizes."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np

SIZE_LIMIT = 4.0  # deviations
SMALLEST_SIDE = 1e-6  # of the image

_normal = NormalDist()


class Frame(Protocol):
    """Maps boxes, absolute xyxy in pixels, float32, shape (B, N, 4), to signal and back; ``whwh`` has shape (B, 4)."""

    def encode(self, bboxes: np.ndarray, whwh: np.ndarray) -> np.ndarray:
        """Signal of boxes, clamped to the range that boxes can have."""

    def decode(self, signal: np.ndarray, whwh: np.ndarray) -> np.ndarray:
        """Boxes of a signal, which is clamped first."""


class SignalFrame(NamedTuple):
    """Normalised cxcywh in [-scale, scale].

    Attributes:
        scale (float): half range.
    """

    scale: float

    def encode(self, bboxes: np.ndarray, whwh: np.ndarray) -> np.ndarray:
        """See :class:`Frame`."""
        return np.clip((_cxcywh(bboxes, whwh) * 2 - 1) * np.float32(self.scale), -self.scale,
                       self.scale).astype(np.float32)

    def decode(self, signal: np.ndarray, whwh: np.ndarray) -> np.ndarray:
        """See :class:`Frame`."""
        return _corners((np.clip(signal, -self.scale, self.scale) / np.float32(self.scale) + 1) / 2, whwh)


class SizeFrame(NamedTuple):
    """Centres by the normal quantile, sizes by the logs of scale and aspect in deviations from their means.

    Attributes:
        log_scale (tuple[float, float]): mean and deviation of log sqrt(w h), in shares of the image.
        log_aspect (tuple[float, float]): mean and deviation of log sqrt(w / h).
    """

    log_scale: tuple[float, float]
    log_aspect: tuple[float, float]

    def encode(self, bboxes: np.ndarray, whwh: np.ndarray) -> np.ndarray:
        """See :class:`Frame`."""
        cxcywh = _cxcywh(bboxes, whwh)
        log_width, log_height = np.moveaxis(np.log(np.maximum(cxcywh[..., 2:], np.float32(SMALLEST_SIDE))), -1, 0)
        sizes = [((log_width + log_height) / 2 - self.log_scale[0]) / self.log_scale[1],
                 ((log_width - log_height) / 2 - self.log_aspect[0]) / self.log_aspect[1]]
        signal = np.concatenate([quantile(np.clip(cxcywh[..., :2], 0, 1)), np.stack(sizes, axis=-1)], axis=-1)
        return np.clip(signal, -SIZE_LIMIT, SIZE_LIMIT).astype(np.float32)

    def decode(self, signal: np.ndarray, whwh: np.ndarray) -> np.ndarray:
        """See :class:`Frame`."""
        signal = np.clip(signal, -SIZE_LIMIT, SIZE_LIMIT)
        scale = signal[..., 2] * self.log_scale[1] + self.log_scale[0]
        aspect = signal[..., 3] * self.log_aspect[1] + self.log_aspect[0]
        sides = np.exp(np.stack([scale + aspect, scale - aspect], axis=-1))
        return _corners(np.concatenate([probability(signal[..., :2]), sides], axis=-1).astype(np.float32), whwh)


def frame_of(diffusion: Mapping) -> Frame:
    """The frame that ``sampler.json`` names under ``diffusion``: ``signal_scale``, or ``sizes``."""
    sizes = diffusion.get('sizes')
    if sizes is None:
        return SignalFrame(diffusion['signal_scale'])
    return SizeFrame(tuple(sizes['log_scale']), tuple(sizes['log_aspect']))


def probability(values: np.ndarray) -> np.ndarray:
    """Share of the standard normal law below each value, float32, rounded as torch does it."""
    halves = np.vectorize(math.erf, otypes=[np.float32])(values.astype(np.float32) / np.float32(math.sqrt(2)))
    return (np.float32(1) + halves) / np.float32(2)


def quantile(probabilities: np.ndarray) -> np.ndarray:
    """Value below which such a share of the standard normal law lies, infinite at 0 and 1; float64."""
    # As torch's, of 2 p - 1 in float32, whose rounding moves the tails by up to 1e-4.
    doubled = np.float32(2) * probabilities.astype(np.float32) - np.float32(1)
    return np.vectorize(_quantile, otypes=[np.float64])((1 + doubled.astype(np.float64)) / 2)


def _quantile(probability: float) -> float:
    if 0 < probability < 1:
        return _normal.inv_cdf(probability)
    return -np.inf if probability <= 0 else np.inf


def _cxcywh(bboxes: np.ndarray, whwh: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = np.moveaxis(bboxes / whwh[:, None], -1, 0)
    return np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=-1)


def _corners(cxcywh: np.ndarray, whwh: np.ndarray) -> np.ndarray:
    cx, cy, width, height = np.moveaxis(cxcywh, -1, 0)
    half_width, half_height = np.float32(0.5) * width, np.float32(0.5) * height
    corners = np.stack([cx - half_width, cy - half_height, cx + half_width, cy + half_height], axis=-1)
    return (corners * whwh[:, None]).astype(np.float32)
