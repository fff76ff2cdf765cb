"""Pictures with their features, on which the head runs at any settings. arXiv:2211.09788, Sec. 4.2, once for all."""

import io
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures import SampleList
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch import Tensor

from diffusiondet_runtime.whole_file import LONGEST_NAME

from ..detectors.several_predictions import wait_for
from ..post_processing import best_pairs, finish_image, merge_steps
from ..prediction import Predictor
from ..sampling_settings import ENSEMBLES, START_NOISES, SamplingSettings, known_values
from ..structures import Detections
from ..task_modules import image_noise, image_sizes
from ..visualization import Moment, box_paths

SETTINGS = ('num_proposals', 'sampling_timesteps', 'eta', 'renewal_score_thr', 'ensemble', 'start_noise', 'seed')
# A request for more would hold up all others, and fill memory where classes are many.
MOST = dict(num_proposals=2000, sampling_timesteps=50)
MOST_BOXES_IN_ALL = 20_000
MOST_PIXELS = 50_000_000  # of a picture
SHOWN, QUALITY = 1600, 90  # longer side and JPEG quality of the picture on the page


class UnknownPicture(KeyError):
    """There is no such picture, or it made room for later ones."""


class KeptPicture(NamedTuple):
    """One picture of those that are held.

    Attributes:
        size (tuple[int, int]): width and height of the file.
        shown (bytes): a JPEG of it, not larger than :data:`SHOWN`.
        feats (tuple[Tensor, ...]): levels of the neck.
        samples (SampleList): one, with the ``metainfo`` of the network input.
        seconds (float): that backbone and neck took.
    """

    size: tuple[int, int]
    shown: bytes
    feats: tuple[Tensor, ...]
    samples: SampleList
    seconds: float


class PictureDial:
    """Runs backbone and neck once a picture and the head at each turn of the dial; safe for several threads.

    Args:
        predictor (Predictor): of a :class:`DiffusionDet`.
        most_pictures (int): that are held with their features; the one not looked at for longest makes room.
    """

    def __init__(self, predictor: Predictor, most_pictures: int = 8) -> None:
        self.predictor, self.most_pictures = predictor, most_pictures
        self.pictures: OrderedDict[str, KeptPicture] = OrderedDict()
        self._lock = threading.Lock()

    def about(self) -> dict:
        """The model, where the sliders start and how far they go, as JSON takes it."""
        model, settings = self.predictor.model, self.settings({})
        return dict(classes=self.predictor.classes, stages=len(model.bbox_head.stages),
                    device=str(next(model.parameters()).device), most=MOST,
                    choices=dict(ensemble=ENSEMBLES, start_noise=START_NOISES),
                    settings={key: getattr(settings, key) for key in SETTINGS})

    @torch.no_grad()
    def add(self, content: bytes, name: str) -> str:
        """Take a picture file in and compute its features.

        Args:
            content (bytes): of the file, of a kind that Pillow and the config's transforms read.
            name (str): of the file; draws go by it, so that it has the boxes that ``mmdet-diffusion predict`` finds.

        Returns:
            str: the name that it has here.

        Raises:
            ValueError: if it is no picture, or one of more than :data:`MOST_PIXELS`.
        """
        pixels, sample = self._read(content, name)
        model = self.predictor.model
        with self._lock:
            data = model.data_preprocessor(pseudo_collate([sample]))
            device = data['inputs'].device
            wait_for(device)
            start = time.perf_counter()
            with model.test_precision(device):
                feats = model.extract_feat(data['inputs'])
            wait_for(device)
            seconds = time.perf_counter() - start
            key = secrets.token_urlsafe(12)  # nobody else's, nor one of a program that ran before
            self.pictures[key] = KeptPicture(pixels.shape[1::-1], _shown(pixels), feats, data['data_samples'], seconds)
            while len(self.pictures) > self.most_pictures:
                self.pictures.popitem(last=False)
        return key

    def _read(self, content: bytes, name: str) -> tuple[np.ndarray, dict]:
        try:
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
        except Exception as error:  # whatever decoders raise at what is no picture
            raise ValueError(f'this cannot be read as a picture ({type(error).__name__})') from error
        if width * height > MOST_PIXELS:
            raise ValueError(f'the picture has {width} x {height} pixels; at most {MOST_PIXELS // 10**6} million are '
                             'taken')
        with tempfile.TemporaryDirectory() as folder:  # the config's transforms read files
            path = Path(folder, _file_name(name))
            path.write_bytes(content)
            try:
                return self.predictor.read(path)
            except Exception as error:  # likewise
                raise ValueError(f'this cannot be read as a picture ({type(error).__name__})') from error

    def picture(self, key: str) -> KeptPicture:
        """One that is held; raises :class:`UnknownPicture`."""
        with self._lock:
            return self._picture(key)

    def _picture(self, key: str) -> KeptPicture:
        if key not in self.pictures:
            raise UnknownPicture(key)
        self.pictures.move_to_end(key)
        return self.pictures[key]

    def settings(self, changes: Mapping[str, object]) -> SamplingSettings:
        """The model's settings with some of :data:`SETTINGS` changed.

        Raises:
            ValueError: if a key is another one, or a value out of range; names it and what is allowed.
        """
        known_values(changes, SETTINGS, 'the settings')
        head = self.predictor.model.bbox_head
        settings = SamplingSettings.from_cfg(dict(head.test_cfg or {}, **changes), head.num_proposals,
                                             head.box_sampler.num_train_timesteps)
        for key, most in MOST.items():
            if getattr(settings, key) > most:
                raise ValueError(f'{key} may be at most {most} here, got {getattr(settings, key)}')
        if settings.num_proposals * settings.sampling_timesteps > MOST_BOXES_IN_ALL:
            raise ValueError(f'num_proposals times sampling_timesteps may be at most {MOST_BOXES_IN_ALL} here, got '
                             f'{settings.num_proposals} x {settings.sampling_timesteps}')
        return settings

    @torch.no_grad()
    def turn(self, key: str, changes: Mapping[str, object]) -> dict:
        """Run the head on a picture.

        Args:
            key (str): of the picture.
            changes (Mapping[str, object]): see :meth:`settings`.

        Returns:
            dict: ``detections`` (``bboxes`` xyxy in pixels of the file, ``scores``, ``labels``, by falling score),
            ``moments`` (see :class:`~mmdet_diffusion.visualization.Moment`; boxes in pixels of the file) and
            ``seconds`` of ``backbone`` and ``head``; as JSON takes them.

        Raises:
            UnknownPicture: if the picture is not held.
            ValueError: see :meth:`settings`.
        """
        settings, model = self.settings(changes), self.predictor.model
        head = model.bbox_head
        with self._lock:
            kept = self._picture(key)
            metas = [sample.metainfo for sample in kept.samples]
            device = kept.feats[0].device
            start = time.perf_counter()
            with model.test_precision(device):
                steps = list(head.sampling_steps(kept.feats, image_sizes(metas, device), settings,
                                                 image_noise(settings.seed or 0, metas, device)))
                merged = merge_steps([best_pairs(step.cls_scores, step.bboxes) for step in steps], settings.ensemble)
                found = finish_image(Detections(*(values[0] for values in merged)), metas[0], settings, rescale=True)
            wait_for(device)
            seconds = time.perf_counter() - start
            moments = box_paths(steps, settings.renewal_score_thr)
        scale = np.array(metas[0].get('scale_factor', (1.0, 1.0)) * 2, dtype=np.float32)
        return dict(
            detections=dict(bboxes=_rounded(found.bboxes.float().cpu().numpy(), 1),
                            scores=_rounded(found.scores.float().cpu().numpy(), 4), labels=found.labels.tolist()),
            moments=[_as_json(moment, scale) for moment in moments],
            seconds=dict(backbone=kept.seconds, head=seconds))


def _as_json(moment: Moment, scale: np.ndarray) -> dict:
    return dict(t=moment.t, step=moment.step, stage=moment.stage, bboxes=_rounded(moment.bboxes / scale, 1),
                scores=_rounded(moment.scores, 4), labels=moment.labels.tolist(), becomes=_rounded(moment.becomes, 4),
                renewed=moment.renewed.astype(int).tolist())


def _rounded(values: np.ndarray, digits: int) -> list:
    """Nested lists of numbers with few digits; a float32 itself would be written with 17."""
    return np.round(values.astype(np.float64), digits).tolist()


def _shown(pixels: np.ndarray) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SHOWN, SHOWN))
    image.save(buffer, format='JPEG', quality=QUALITY)
    return buffer.getvalue()


def _file_name(name: str) -> str:
    """A name without folders and what file systems refuse."""
    last = name.replace('\\', '/').rsplit('/', 1)[-1].replace('\0', '')
    last = last.encode('utf-8', 'replace')[-LONGEST_NAME:].decode('utf-8', 'ignore')
    return last if last.strip('. ') else 'picture'
