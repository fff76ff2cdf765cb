"""The detector: pictures in, detections out, at any number of boxes and steps."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import pictures, sampling
from .engines import ENGINES
from .errors import ExportError
from .even_noise import even_noise
from .folder import read_folder
from .frames import Frame, frame_of
from .memory import refuse_too_many
from .noise import DrawNormal, as_array, given_noise, image_noise
from .post_processing import Detections, best_pairs, finish, merge_steps
from .sampling import SamplingStep

Picture = str | os.PathLike | Image.Image | np.ndarray


class BatchStep(NamedTuple):
    """A :class:`SamplingStep` of a batch, in pixels of the network input: arrays of shape (B, N, ...)."""

    t: int
    noisy_bboxes: np.ndarray
    logits: np.ndarray
    bboxes: np.ndarray


class OnnxDetector:
    """An exported detector.

    Args:
        folder (str | os.PathLike): written by ``mmdet-diffusion export``.
        engine (str): ``onnxruntime`` or ``openvino``.
        num_threads (int | None): None: the engine's choice.

    Attributes:
        sampler (dict): content of ``sampler.json``.
        classes (list[str]): names by label.
        engine: runs the graphs, see :mod:`diffusiondet_runtime.engines`.

    Raises:
        ExportError: if the folder is damaged or mixed, there is no such engine, or it cannot run the graphs.
    """

    def __init__(self, folder: str | os.PathLike, *, engine: str = 'onnxruntime',
                 num_threads: int | None = None) -> None:
        if engine not in ENGINES:
            raise ExportError(f'there is no engine {engine!r}; there are {", ".join(ENGINES)}')
        if num_threads is not None:
            _require_integer('num_threads', num_threads, least=1)
        self.sampler = read_folder(folder).sampler
        self.classes = self.sampler['classes']
        self.engine = ENGINES[engine](Path(folder), num_threads)

    def detect(self, image: Picture, *, steps: int | None = None, boxes: int | None = None, seed: int | None = None,
               name: str | None = None, noise: np.ndarray | None = None, score_thr: float = 0.0,
               proposals: np.ndarray | None = None) -> Detections:
        """Find objects in a picture.

        Args:
            image (Picture): path, Pillow image, or uint8 RGB array of shape (h, w, 3).
            steps (int | None): of sampling. None: as exported.
            boxes (int | None): to start from. None: as exported.
            seed (int | None): of the noise; the same seed and name give the draws that torch makes for them. None: as
                exported, else 0.
            name (str | None): of the picture, for the noise. None: the file's name, or none.
            noise (np.ndarray | None): instead of a seed, shape (draws, boxes, 4), see :func:`noise.given_noise`.
            score_thr (float): detections at or below it are left out.
            proposals (np.ndarray | None): boxes in pixels of the picture, the most important first, shape (P, 4), that
                take the places of at most half of the start boxes: such as detections in the frame before.

        Returns:
            Detections: in pixels of the picture.

        Raises:
            ExportError: if the picture cannot be read, a setting is out of range, or memory is too small for it.
        """
        noise = _of_one_picture(noise)
        return self.detect_batch([image], steps=steps, boxes=boxes, seed=seed, names=[name], noise=noise,
                                 score_thr=score_thr, proposals=[proposals])[0]

    def detect_batch(self, images: Sequence[Picture], *, steps: int | None = None, boxes: int | None = None,
                     seed: int | None = None, names: Sequence[str | None] | None = None,
                     noise: np.ndarray | None = None, score_thr: float = 0.0,
                     proposals: Sequence[np.ndarray | None] | None = None) -> list[Detections]:
        """As :meth:`detect`, of several pictures at once; ``noise`` has the shape (draws, B, boxes, 4).

        They are padded to the largest width and height among them, as in torch. A network whose norms or attention look
        at the padding finds slightly other boxes than in a picture alone.
        """
        if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)) or not isinstance(images, Sequence):
            raise ExportError(f'detect_batch takes a list of pictures, got {type(images).__name__}; detect takes one')
        if isinstance(score_thr, bool) or not isinstance(score_thr, (int, float, np.number)) or score_thr != score_thr:
            raise ExportError(f'score_thr must be a number, got {score_thr!r}')
        prepared = [self.prepare(image) for image in images]
        if proposals is not None:
            if len(proposals) != len(images):
                raise ExportError(f'proposals must be a list of one for each of {len(images)} pictures, got '
                                  f'{len(proposals)}')
            proposals = [_scaled(*each) for each in zip(proposals, prepared, strict=True)]
        walk = self.sample(prepared, steps, boxes, seed, _names(images, names), noise, proposals)
        found = [[best_pairs(*pair) for pair in zip(step.logits, step.bboxes, strict=True)] for step in walk]
        settings = self.sampler['post_processing']
        settings = dict(settings, score_thr=max(score_thr, settings['score_thr']))
        ensemble = self.sampler['sampling']['ensemble']
        found = [finish(merge_steps(list(of_image), ensemble), settings, one.size, one.scale)
                 for of_image, one in zip(zip(*found, strict=True), prepared, strict=True)]
        # Once more: soft suppression lowers scores.
        return [Detections(*(values[one.scores > np.float32(score_thr)] for values in one)) for one in found]

    def steps(self, image: Picture, *, steps: int | None = None, boxes: int | None = None, seed: int | None = None,
              name: str | None = None, noise: np.ndarray | None = None) -> Iterator[SamplingStep]:
        """The way from noise to objects, step by step; arguments as of :meth:`detect`.

        Yields:
            SamplingStep: boxes in pixels of the picture.
        """
        prepared, noise = self.prepare(image), _of_one_picture(noise)
        scale = np.array([*prepared.scale, *prepared.scale], dtype=np.float32)
        for step in self.sample([prepared], steps, boxes, seed, _names([image], [name]), noise):
            yield SamplingStep(step.t, step.noisy_bboxes[0] / scale, step.logits[0], step.bboxes[0] / scale)

    def read(self, image: Picture) -> np.ndarray:
        """A picture as uint8 RGB, shape (h, w, 3), decoded as the config's pipeline does."""
        return pictures.read_picture(image, self.sampler['input'].get('decoder', 'pillow'))

    def prepare(self, image: Picture) -> pictures.Prepared:
        """What the network takes of a picture."""
        return pictures.prepare(self.read(image), self.sampler['input'])

    def sample(self, prepared: list[pictures.Prepared], steps: int | None, boxes: int | None, seed: int | None,
               names: Sequence[str], noise: np.ndarray | None,
               proposals: Sequence[np.ndarray | None] | None = None) -> Iterator[BatchStep]:
        """The reverse process (arXiv:2211.09788, Alg. 2) of a batch, in pixels of the network input."""
        if not prepared:
            return
        steps, boxes = self.checked('steps', steps), self.checked('boxes', boxes)
        refuse_too_many(len(prepared), boxes, self.sampler['limits'])
        seed = (self.sampler['sampling'].get('seed') or 0) if seed is None else _require_integer('seed', seed)
        draw: DrawNormal = image_noise(seed, names) if noise is None else given_noise(noise, boxes)
        levels = self.engine.features(pictures.batch(prepared, self.sampler['input']))
        whwh = np.array([[*one.size, *one.size] for one in prepared], dtype=np.float32)
        frame, settings = frame_of(self.sampler['diffusion']), self.sampler['sampling']
        is_even = settings.get('start_noise', 'random') == 'even' and noise is None
        x_t = even_noise(draw(1), boxes) if is_even else draw(boxes)
        if x_t.shape[0] != len(prepared):
            raise ExportError(f'noise is of {x_t.shape[0]} pictures, not of {len(prepared)}')
        if proposals is not None:
            x_t = _with_proposals(x_t, proposals, frame, whwh)
        for step in sampling.coefficients(self.sampler['diffusion']['alpha_bar'], steps, settings['eta']):
            noisy = frame.decode(x_t, whwh)
            logits, bboxes = self.engine.refine(levels, noisy, np.full(len(prepared), step.t, dtype=np.int64))
            yield BatchStep(step.t, noisy, logits, bboxes)
            if step.t_next < 0:
                return
            x_t = sampling.ddim_step(x_t, frame.encode(bboxes, whwh), step, draw(boxes))
            if settings['renewal_score_thr'] is not None:
                x_t = sampling.renew(x_t, logits, settings['renewal_score_thr'], draw(boxes))

    def checked(self, key: str, value: int | None) -> int:
        """A number of ``steps`` or ``boxes``, as exported if None; ExportError where it is out of range."""
        if value is None:
            return self.sampler['sampling'][key]
        most = len(self.sampler['diffusion']['alpha_bar']) if key == 'steps' else None
        return _require_integer(key, value, least=1, most=most)


def _require_integer(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    if (isinstance(value, bool) or not isinstance(value, (int, np.integer))
            or (least is not None and value < least) or (most is not None and value > most)):
        allowed = '' if least is None else f' in {least}..{most}' if most is not None else f' of at least {least}'
        raise ExportError(f'{name} must be an integer{allowed}, got {value!r}')
    return int(value)


def _of_one_picture(noise: np.ndarray | None) -> np.ndarray | None:
    """Noise of a batch of one."""
    if noise is None:
        return None
    noise = as_array(noise)
    if noise.ndim != 3:
        raise ExportError(f'noise of one picture must have the shape (draws, boxes, 4), got {noise.shape}')
    return noise[:, None]


def _with_proposals(x_t: np.ndarray, proposals: Sequence[np.ndarray | None], frame: Frame, whwh: np.ndarray
                    ) -> np.ndarray:
    """Start noise with boxes that are known in the place of at most half of it, as in torch."""
    x_t = x_t.copy()  # it may be the caller's
    for signal, bboxes, size in zip(x_t, proposals, whwh, strict=True):
        if bboxes is not None and len(bboxes):
            known = bboxes[:len(signal) // 2]
            signal[:len(known)] = frame.encode(known[None], size[None])[0]
    return x_t


def _scaled(proposals: np.ndarray | None, prepared: pictures.Prepared) -> np.ndarray | None:
    """Boxes of a picture in pixels of the network input."""
    if proposals is None:
        return None
    proposals = np.asarray(proposals, dtype=np.float32)
    if proposals.ndim != 2 or proposals.shape[1] != 4:
        raise ExportError(f'proposals of a picture must have the shape (P, 4), got {proposals.shape}')
    return proposals * np.array([*prepared.scale, *prepared.scale], dtype=np.float32)


def _names(images: Sequence[Picture], names: Sequence[str | None] | None) -> list[str]:
    """Of each picture: given, else of its file, else none."""
    given = names if names is not None else [None] * len(images)
    if isinstance(given, str) or len(given) != len(images):
        raise ExportError(f'names must be a list of one for each of {len(images)} pictures, got {given!r}')
    return [name if name is not None else (Path(image).name if isinstance(image, (str, os.PathLike)) else '')
            for image, name in zip(images, given, strict=True)]
