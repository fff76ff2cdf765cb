"""The reverse process on arrays: DDIM (Song et al. 2021, arXiv:2010.02502, Eq. (12)) and box renewal."""

import math
from typing import NamedTuple

import numpy as np


class SamplingStep(NamedTuple):
    """One step of the reverse process.

    Attributes:
        t (int): diffusion step, from T - 1 down.
        noisy_bboxes (np.ndarray): boxes that go into the head, absolute xyxy in pixels, float32, shape (N, 4).
        logits (np.ndarray): class logits of the last stage, float32, shape (N, C).
        bboxes (np.ndarray): boxes of the last stage, absolute xyxy in pixels, float32, shape (N, 4).
    """

    t: int
    noisy_bboxes: np.ndarray
    logits: np.ndarray
    bboxes: np.ndarray


class Coefficients(NamedTuple):
    """``x_next = x_start * signal + noise_estimate * kept + noise * fresh``, with
    ``noise_estimate = (x_t - x_start * present_signal) / present_noise``; all float64.

    Attributes:
        t (int): present step.
        t_next (int): next step; -1 is the clean signal.
        present_signal (float): sqrt(alpha_bar).
        present_noise (float): sqrt(1 - alpha_bar).
        signal (float): sqrt(alpha_bar_next).
        kept (float): sqrt(1 - alpha_bar_next - sigma^2).
        fresh (float): sigma.
    """

    t: int
    t_next: int
    present_signal: float
    present_noise: float
    signal: float
    kept: float
    fresh: float


def coefficients(alpha_bar: list[float], steps: int, eta: float) -> list[Coefficients]:
    """Coefficients of each step of DDIM.

    Args:
        alpha_bar (list[float]): signal share of each step of the forward process, T numbers.
        steps (int): 1..T; step i of them starts at ``floor((steps - i) T / steps) - 1``.
        eta (float): 0 is deterministic, 1 the ancestral sampler.

    Returns:
        list[Coefficients]: from noise to signal.
    """
    total = len(alpha_bar)
    times = [step * total // steps - 1 for step in range(steps, -1, -1)]
    result = []
    for now, following in zip(times[:-1], times[1:], strict=True):
        share, share_next = alpha_bar[now], 1.0 if following < 0 else alpha_bar[following]
        noise, noise_next = 1 - share, 1 - share_next
        variance = eta**2 * (1 - share / share_next) * noise_next / noise
        # The difference 1 - alpha_bar_next - sigma^2 cancels; this sum of terms that are not negative does not.
        kept = noise_next * ((1 - eta**2) + eta**2 * share * noise_next / (share_next * noise))
        result.append(Coefficients(now, following, *map(math.sqrt, (share, noise, share_next, kept, variance))))
    return result


def ddim_step(x_t: np.ndarray, x_start: np.ndarray, step: Coefficients, noise: np.ndarray) -> np.ndarray:
    """Towards the predicted ``x_start``; float32 arrays of one shape."""
    estimate = (x_t - np.float32(step.present_signal) * x_start) / np.float32(step.present_noise)
    return (np.float32(step.signal) * x_start + np.float32(step.kept) * estimate
            + np.float32(step.fresh) * noise)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Float32, without overflow."""
    positive = np.exp(-np.abs(logits))
    return (np.where(logits >= 0, np.float32(1), positive) / (1 + positive)).astype(np.float32)


def renew(x_t: np.ndarray, logits: np.ndarray, score_thr: float, fresh: np.ndarray) -> np.ndarray:
    """Boxes whose best score is not above ``score_thr`` become ``fresh`` noise, each in its place."""
    best = sigmoid(logits.max(axis=-1))
    return np.where((best > np.float32(score_thr))[..., None], x_t, fresh)
