"""Detections drawn on their picture."""

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LINE, LETTERS, SMALLEST_LETTERS = 1 / 400, 1 / 45, 10  # width and height as shares of the longer side; pixels


def colour_of(label: int) -> tuple[int, int, int]:
    """Of a class, RGB: hues far apart for neighbouring labels."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 1.0))


def draw_detections(picture: np.ndarray, bboxes: Sequence[Sequence[float]], scores: Sequence[float],
                    labels: Sequence[int], classes: Sequence[str]) -> np.ndarray:
    """The picture with boxes, names and scores, those of the surest detections on top.

    Args:
        picture (np.ndarray): uint8 RGB, shape (h, w, 3).
        bboxes (Sequence[Sequence[float]]): xyxy in pixels of the picture; what is outside of it is cut off.
        scores (Sequence[float]): of each box.
        labels (Sequence[int]): of each box.
        classes (Sequence[str]): names of the labels.

    Returns:
        np.ndarray: uint8 RGB, shape (h, w, 3); the picture given stays as it is.
    """
    (height, width), drawn = picture.shape[:2], picture.copy()
    longer = max(height, width)
    line, letters = max(1, round(longer * LINE)), max(SMALLEST_LETTERS, round(longer * LETTERS))
    for index in np.argsort(scores, kind='stable').tolist():
        left, top, right, bottom = map(float, bboxes[index])
        if not (right > left and bottom > top and right > 0 and bottom > 0 and left < width and top < height):
            continue
        left, right = (round(min(max(x, -line), width + line)) for x in (left, right))
        top, bottom = (round(min(max(y, -line), height + line)) for y in (top, bottom))
        colour, across, down = colour_of(labels[index]), min(line, right - left + 1), min(line, bottom - top + 1)
        for columns, rows in (((left, right), (top, top + down - 1)), ((left, right), (bottom - down + 1, bottom)),
                              ((left, left + across - 1), (top, bottom)), ((right - across + 1, right), (top, bottom))):
            drawn[_inside(*rows), _inside(*columns)] = colour
        label = _label(f'{classes[labels[index]]} {scores[index]:.2f}', colour, letters)
        tall, wide = label.shape[:2]
        y, x = max(0, min(top, height) - tall), max(0, min(left, width - wide))
        part = drawn[y:y + tall, x:x + wide]
        part[...] = label[:len(part), :part.shape[1]]
    return drawn


def _inside(first: int, last: int) -> slice:
    """Of an axis, both ends counted, without what lies before it."""
    return slice(max(0, first), max(0, last + 1))


@lru_cache(maxsize=256)  # scores of two digits come again and again; 37 MiB of labels at 4K
def _label(text: str, colour: tuple[int, int, int], letters: int) -> np.ndarray:
    """A name and a score on a ground of that colour, uint8 RGB of shape (h, w, 3)."""
    font = _font(letters)
    if not isinstance(font, ImageFont.FreeTypeFont):
        text = text.encode('latin-1', 'replace').decode('latin-1')  # all that Pillow's own letters have
    x, y, right, bottom = map(round, ImageDraw.Draw(Image.new('L', (1, 1))).textbbox((0, 0), text, font=font))
    label = Image.new('RGB', (right - x + 4, bottom - y + 4), colour)
    ImageDraw.Draw(label).text((2 - x, 2 - y), text, fill='black', font=font)
    return np.asarray(label)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow before 10.1, or one without FreeType: letters of one size
        return ImageFont.load_default()
