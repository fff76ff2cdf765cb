"""An exported detector applied to picture files: boxes as JSON holds them, and drawn pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .detector import OnnxDetector
from .drawing import draw_detections
from .errors import ExportError
from .post_processing import Detections
from .prediction_stream import Prediction, predict_sources


class FoundInPicture(NamedTuple):
    """Detections, and the width and height of the picture that they are of."""

    detections: Detections
    size: tuple[int, int]


class ExportPredictor:
    """What ``mmdet-diffusion predict`` runs on an exported folder.

    Args:
        folder (str): exported.
        engine (str): ``onnxruntime`` or ``openvino``.
        score_thr (float): detections that do not score above it are left out.
        steps (int | None): of sampling. None: as exported.
        boxes (int | None): to start from. None: as exported.
        seed (int | None): of the noise. None: as exported, else 0.

    Raises:
        SystemExit: if the folder cannot be used, or a setting is out of range.
    """

    def __init__(self, folder: str, *, engine: str, score_thr: float, steps: int | None, boxes: int | None,
                 seed: int | None) -> None:
        try:
            self.detector = OnnxDetector(folder, engine=engine)
            self.detector.checked('steps', steps)
            self.detector.checked('boxes', boxes)
        except ExportError as error:
            raise SystemExit(str(error)) from error
        self.classes, self.score_thr = self.detector.classes, score_thr
        self.settings = dict(steps=steps, boxes=boxes, seed=seed)

    def read(self, path: Path) -> tuple[np.ndarray, tuple]:
        """A picture file, uint8 RGB (h, w, 3), and the same with the name that its draws go by."""
        picture = self.detector.read(path)
        return picture, self.sample(picture, path.name)

    def sample(self, pixels: np.ndarray, name: str, before: FoundInPicture | None = None) -> tuple:
        """What :meth:`detect` takes of a picture in memory, uint8 RGB (h, w, 3).

        Args:
            pixels (np.ndarray): the picture.
            name (str): that its draws go by.
            before (FoundInPicture | None): what was found in the frame before, to start from besides noise.
        """
        return pixels, name, None if before is None else before.detections.bboxes

    def predict(self, sources: str | Path | Sequence[str | Path], **settings) -> Iterator[Prediction]:
        """Detections of pictures, folders, globs, videos, cameras, streams; settings as of :func:`predict_stream`."""
        return predict_sources(self, sources, **settings)

    def detect(self, samples: Sequence[tuple]) -> list[FoundInPicture]:
        """Detections above the threshold, best first, in pixels of the picture file."""
        pictures, names, proposals = zip(*samples, strict=True)
        try:
            found = self.detector.detect_batch(pictures, names=names, proposals=proposals, score_thr=self.score_thr,
                                               **self.settings)
        except ExportError as error:
            raise SystemExit(str(error)) from error
        return [FoundInPicture(each, picture.shape[1::-1]) for each, picture in zip(found, pictures, strict=True)]

    def record(self, found: FoundInPicture) -> dict:
        """Detections of one picture as JSON takes them: boxes as absolute xyxy in pixels."""
        (bboxes, scores, labels), (width, height) = found
        return dict(width=width, height=height,
                    bboxes=[[round(side, 2) for side in box] for box in bboxes.tolist()],
                    scores=[round(score, 4) for score in scores.tolist()], labels=labels.tolist(),
                    class_names=[self.classes[label] for label in labels.tolist()])

    def drawn(self, picture: np.ndarray, found: FoundInPicture) -> np.ndarray:
        """The picture with its detections, uint8 RGB (h, w, 3)."""
        bboxes, scores, labels = (values.tolist() for values in found.detections)
        return draw_detections(picture, bboxes, scores, labels, self.classes)
