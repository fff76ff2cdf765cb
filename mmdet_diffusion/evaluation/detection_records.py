"""Detections kept on disk as they are made, so that a run that ends goes on where it stopped.

A cell is one detector at one setting with one seed. Its folder is named by :func:`content_key`; it holds ``cell.json``,
which says what the key stands for, and a file for each chunk of images, which is there as a whole or not at all.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..whole_file import write_whole_file
from .content_key import content_key


class ImageDetections(NamedTuple):
    """Detections of one image, by falling score.

    Attributes:
        bboxes (ndarray): absolute xyxy in pixels of the picture file, float32, shape (D, 4).
        scores (ndarray): float32, shape (D,).
        labels (ndarray): int64, shape (D,).
        seconds (tuple[float, float]): what features took that other cells share, and the rest; each batch's time
            divided by its images.
    """

    bboxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    seconds: tuple[float, float]


class CellRecords:
    """The detections of one cell.

    Args:
        root (Path): folder of all cells.
        parts (Mapping[str, object]): what the cell is made of.
    """

    def __init__(self, root: Path, parts: Mapping[str, object]) -> None:
        self.folder = root / content_key(parts)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / 'cell.json').exists():
            content = json.dumps(parts, indent=1, sort_keys=True, default=str).encode()
            write_whole_file(self.folder / 'cell.json', content)

    def has(self, chunk: int) -> bool:
        """Whether a chunk is there."""
        return self._path(chunk).exists()

    def write(self, chunk: int, images: Sequence[ImageDetections]) -> None:
        """Keep a chunk, all of it or nothing."""
        counts = [len(image.scores) for image in images]
        unfinished = self.folder / f'.{chunk}.{os.getpid()}.npz'
        np.savez_compressed(
            unfinished, counts=counts, seconds=[image.seconds for image in images],
            bboxes=np.concatenate([image.bboxes.reshape(-1, 4) for image in images]),
            scores=np.concatenate([image.scores for image in images]),
            labels=np.concatenate([image.labels for image in images]))
        unfinished.replace(self._path(chunk))

    def read(self, num_chunks: int, num_images: int) -> list[ImageDetections]:
        """All images, in the order of the data set.

        Args:
            num_chunks (int): that the data set was tested in.
            num_images (int): of the data set.

        Raises:
            FileNotFoundError: if a chunk is missing.
            ValueError: if the chunks have another number of images.
        """
        images = []
        for chunk in range(num_chunks):
            with np.load(self._path(chunk)) as content:
                values = {name: content[name] for name in content.files}
            ends = np.cumsum(values['counts'])[:-1]
            images += [ImageDetections(*each, tuple(seconds)) for *each, seconds in zip(
                *(np.split(values[name], ends) for name in ('bboxes', 'scores', 'labels')), values['seconds'],
                strict=True)]
        if len(images) != num_images:
            raise ValueError(f'{self.folder} holds detections of {len(images)} images, the data set has {num_images}; '
                             'remove the folder, and they are made anew')
        return images

    def _path(self, chunk: int) -> Path:
        return self.folder / f'{chunk:05d}.npz'
