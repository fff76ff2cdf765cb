"""``test_cfg`` of the head, checked: the dial of one trained model (arXiv:2211.09788, Sec. 4.2, once for all)."""

import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from mmdet.utils import OptConfigType

from .diffusion import sampling_time_pairs
from .number_checks import is_integer, is_number

START_NOISES = ('random', 'even')
ENSEMBLES = ('all', 'all_but_last', 'last')
NMS_TYPES = ('nms', 'soft_nms')
NO_LIMIT = -1  # MMDetection's number, of max_per_img


class SamplingSettings(NamedTuple):
    """How to sample and what to do with the detections.

    Attributes:
        num_proposals (int): N_eval, boxes per image; None in the config means as trained.
        sampling_timesteps (int): steps, 1..T.
        start_noise (str): ``random`` draws every start box on its own, ``even`` spreads those of an image over their
            law (:func:`even_noise`): fewer objects without a box near them, and less luck in a seed.
        eta (float): 0 is deterministic DDIM, 1 the ancestral sampler.
        renewal_score_thr (float, optional): boxes whose best score is at or below it become noise. None: no renewal.
        ensemble (str): steps whose detections count: ``all``, ``all_but_last`` (as the authors' code), ``last``.
        score_thr (float, optional): detections at or below it are dropped. None: whatever their score, they stay.
        nms (dict, optional): of mmcv's ``batched_nms``. None: no suppression.
        max_per_img (int): detections kept per image; -1: all, as in MMDetection.
        min_bbox_size (float): boxes with a side at or below it, in pixels of the network input, are dropped.
        seed (int, optional): each image draws from its own generator, made from it and the image's id.
    """

    num_proposals: int
    sampling_timesteps: int = 1
    start_noise: str = 'random'
    eta: float = 1.0
    renewal_score_thr: float | None = 0.5
    ensemble: str = 'all'
    score_thr: float | None = 0.0
    nms: dict | None = None
    max_per_img: int = 300
    min_bbox_size: float = 0
    seed: int | None = None

    @classmethod
    def from_cfg(cls, test_cfg: OptConfigType, num_proposals: int, num_train_timesteps: int) -> 'SamplingSettings':
        """Read and check a ``test_cfg``.

        Args:
            test_cfg (OptConfigType): the config's; None stands for the defaults.
            num_proposals (int): N as trained.
            num_train_timesteps (int): T.

        Returns:
            SamplingSettings: see there.

        Raises:
            ValueError: if a key is unknown or a value out of range; names the key, the value and what is allowed.
        """
        values = known_values(test_cfg, cls._fields, 'test_cfg')
        if values.get('num_proposals') is None:
            values['num_proposals'] = num_proposals
        settings = cls(**values)
        sampling_time_pairs(num_train_timesteps, settings.sampling_timesteps)
        settings.check('test_cfg')
        return settings

    @property
    def best(self) -> slice:
        """The detections that are kept of those by falling score."""
        return slice(None if self.max_per_img == NO_LIMIT else self.max_per_img)

    def check(self, origin: str) -> None:
        """Refuse values out of range.

        Args:
            origin (str): where they stand in the config, for the message.

        Raises:
            ValueError: names the key, the value and what is allowed.
        """
        require = partial(_require, origin)
        require(_is_count(self.num_proposals), 'num_proposals', self.num_proposals, 'an integer of at least 1')
        require(_is_count(self.max_per_img) or self.max_per_img == NO_LIMIT, 'max_per_img', self.max_per_img,
                 'an integer of at least 1, or -1 for no limit')
        require(is_number(self.eta) and 0 <= self.eta <= 1, 'eta', self.eta, 'a number in 0..1')
        require(self.start_noise in START_NOISES, 'start_noise', self.start_noise, f'one of {", ".join(START_NOISES)}')
        require(self.ensemble in ENSEMBLES, 'ensemble', self.ensemble, f'one of {", ".join(ENSEMBLES)}')
        renewal = self.renewal_score_thr
        require(renewal is None or (is_number(renewal) and 0 <= renewal <= 1), 'renewal_score_thr', renewal,
                 'a number in 0..1, or None for no renewal')
        threshold = self.score_thr
        require(threshold is None or (is_number(threshold) and 0 <= threshold < 1), 'score_thr', threshold,
                 'a number from 0 to below 1, or None for no threshold')
        require(is_number(self.min_bbox_size) and self.min_bbox_size >= 0, 'min_bbox_size', self.min_bbox_size,
                 'a number of at least 0')
        require(self.seed is None or isinstance(self.seed, int), 'seed', self.seed, 'an integer or None')
        require(self.nms is None or _is_nms(self.nms), 'nms', self.nms,
                 "None or a dict such as dict(type='nms', iou_threshold=0.5); types: nms, soft_nms")


def steps_and_boxes(text: str) -> tuple[int, int]:
    """``4x100`` to 4 steps and 100 boxes.

    Raises:
        ValueError: if it is something else.
    """
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'{text!r} is not STEPSxBOXES, such as 4x100')
    return int(match[1]), int(match[2])


def known_values(cfg: OptConfigType, keys: Sequence[str], origin: str) -> dict:
    """The content of a part of a config; empty where there is none.

    Args:
        cfg (OptConfigType): the part.
        keys (Sequence[str]): that it may have.
        origin (str): its name, for the message.

    Raises:
        ValueError: if it has another key.
    """
    values = dict(cfg or {})
    unknown = sorted(set(values) - set(keys))
    if unknown:
        raise ValueError(f'unknown key in {origin}: {", ".join(unknown)}; there are {", ".join(keys)}')
    return values


def _is_count(value: object) -> bool:
    return is_integer(value) and value >= 1


def _is_nms(value: object) -> bool:
    return isinstance(value, dict) and is_number(value.get('iou_threshold')) and value.get('type', 'nms') in NMS_TYPES


def _require(origin: str, holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f'{origin}.{key} must be {allowed}, got {value!r}')
