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
    image = Image.fromarray(picture)
    pen, longer = ImageDraw.Draw(image), max(image.size)
    width, font = max(1, round(longer * LINE)), _font(max(SMALLEST_LETTERS, round(longer * LETTERS)))
    for index in np.argsort(scores, kind='stable').tolist():
        left, top, right, bottom = map(float, bboxes[index])
        if not (right > left and bottom > top):
            continue
        colour = colour_of(labels[index])
        pen.rectangle((left, top, right, bottom), outline=colour, width=width)
        _write(pen, f'{classes[labels[index]]} {scores[index]:.2f}', (left, top), image.size, colour, font)
    return np.asarray(image)


def _write(pen: ImageDraw.ImageDraw, text: str, corner: tuple[float, float], size: tuple[int, int],
           colour: tuple[int, int, int], font: ImageFont.ImageFont) -> None:
    """A label above its box, inside the picture."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        text = text.encode('latin-1', 'replace').decode('latin-1')  # all that Pillow's own letters have
    x, y, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - x + 4, bottom - y + 4
    left = max(0, min(corner[0], size[0] - width))
    top = max(0, min(corner[1] - height, size[1] - height))
    pen.rectangle((left, top, left + width, top + height), fill=colour)
    pen.text((left + 2 - x, top + 2 - y), text, fill='black', font=font)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow before 10.1, or one without FreeType: letters of one size
        return ImageFont.load_default()
