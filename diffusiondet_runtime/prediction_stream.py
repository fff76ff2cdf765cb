"""Detections of pictures and videos, one after the other, of any predictor: with torch, or of an exported folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from .errors import first_line
from .sources import Video, VideoFrames, find_sources


class Predictor(Protocol):
    """What a stream needs of a predictor; samples and what is found are its own matter."""

    def read(self, path: Path) -> tuple[np.ndarray, object]:
        """Pixels of a picture file, uint8 RGB (h, w, 3), and its sample."""

    def sample(self, pixels: np.ndarray, name: str, before: object | None = None) -> object:
        """The sample of a picture in memory, uint8 RGB; its draws go by the name, and start boxes by what was found
        before, where that is given."""

    def detect(self, samples: Sequence[object]) -> list[object]:
        """What is found in each."""


class Prediction(NamedTuple):
    """One picture or frame.

    Attributes:
        source (str): path, number of a camera, or address.
        frame (int | None): place in a video, from 0; None for a picture.
        pixels (np.ndarray): uint8 RGB, shape (h, w, 3).
        found (object): as the predictor gives it, see its ``record``.
        video (VideoFrames | None): that the frame is of.
    """

    source: str
    frame: int | None
    pixels: np.ndarray
    found: object
    video: VideoFrames | None


def predict_sources(predictor: Predictor, sources: str | Path | Sequence[str | Path], *,
                    failed: Callable[[str, str], None] = lambda source, reason: None, **settings
                    ) -> Iterator[Prediction]:
    """As :func:`predict_stream`, of one source or several as a user names them: see :func:`find_sources`."""
    named = [sources] if isinstance(sources, (str, Path)) else sources
    return predict_stream(predictor, _looked_up(named, failed), failed=failed, **settings)


def _looked_up(sources: Sequence[str | Path], failed: Callable[[str, str], None]) -> Iterator[Path | Video]:
    for source in sources:
        found = find_sources([str(source)])
        for name, reason in found.failed.items():
            failed(name, reason)
        yield from found.items


def predict_stream(predictor: Predictor, items: Iterable[Path | Video], *, batch_size: int = 1,
                   carry_boxes: bool = False, failed: Callable[[str, str], None] = lambda source, reason: None
                   ) -> Iterator[Prediction]:
    """Go through pictures and videos and detect; no more than a batch is held in memory.

    All frames of a video start from the same boxes, so that detections move with the objects and not with the noise;
    with ``carry_boxes`` from what was found in the frame before, and from noise that is new in each.

    Args:
        predictor (Predictor): of :mod:`diffusiondet_runtime.prediction` or ``mmdet_diffusion.prediction``.
        items (Iterable[Path | Video]): picture files, and videos.
        batch_size (int): pictures or frames at once; of one video or of pictures alone. Cameras and streams go frame by
            frame.
        carry_boxes (bool): frames of a video one by one, half of the start boxes at most where objects were before.
        failed (Callable[[str, str], None]): told what cannot be read, and why, as it happens; the others go on.

    Yields:
        Prediction: in order.
    """
    pictures: list[tuple] = []
    for item in items:
        if isinstance(item, Video):
            yield from _detected(predictor, pictures)
            pictures = []
            # A camera may be silent for long, and what is waiting for a batch to fill would be lost with it.
            one_by_one = carry_boxes or item.has_no_end
            yield from _of_video(predictor, item, 1 if one_by_one else batch_size, carry_boxes, failed)
        else:
            try:
                pictures.append((str(item), None, *predictor.read(item), None))
            except Exception as error:  # whatever decoders raise at what is no picture
                failed(str(item), f'cannot be used ({type(error).__name__}: {first_line(error)})')
            if len(pictures) == batch_size:
                yield from _detected(predictor, pictures)
                pictures = []
    yield from _detected(predictor, pictures)


def _of_video(predictor: Predictor, video: Video, batch_size: int, carry_boxes: bool,
              failed: Callable[[str, str], None]) -> Iterator[Prediction]:
    try:
        frames = VideoFrames(video)
    except OSError as error:
        failed(video.source, str(error))
        return
    with frames:
        batch, number, before = [], 0, None
        for place, pixels in frames:
            name = f'{video.name}:{place}' if carry_boxes else video.name
            batch.append((video.source, place, pixels, predictor.sample(pixels, name, before), frames))
            number += 1
            if len(batch) == batch_size:
                for one in _detected(predictor, batch):
                    before = one.found if carry_boxes else None
                    yield one
                batch = []
        yield from _detected(predictor, batch)
        if not number:
            failed(video.source, 'has no frame that can be read')
        elif frames.silence:
            failed(video.source, f'gave no frame for {frames.silence:.0f} seconds after {number} frames')
        elif frames.broken:
            failed(video.source, f'{len(frames.broken)} of {frames.number} frames cannot be read, the first is '
                                 f'{frames.broken[0]}')


def _detected(predictor: Predictor, batch: list[tuple]) -> Iterator[Prediction]:
    if not batch:
        return
    for (source, place, pixels, _, video), found in zip(batch, predictor.detect([one[3] for one in batch]),
                                                        strict=True):
        yield Prediction(source, place, pixels, found, video)
