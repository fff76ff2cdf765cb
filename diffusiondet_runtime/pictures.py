"""From a picture to what the network takes, as the test pipeline of the config does it."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .errors import ExportError, first_line

CANVAS = (124, 117, 104)  # mmcv's, behind grey pictures with transparency
COEFFICIENT_BITS = 11  # of OpenCV's fixed-point interpolation
ORIENTATION = 0x0112  # of EXIF
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # by orientation; from 5 on width and height change places
TIFF_SIZE = 256, 257  # tags of width and height


class Prepared(NamedTuple):
    """One picture, ready for the network.

    Attributes:
        pixels (np.ndarray): normalised, not padded, float32, shape (3, h, w).
        size (tuple[int, int]): w and h.
        scale (tuple[float, float]): from the picture's width and height to those.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    scale: tuple[float, float]


def read_picture(source: str | os.PathLike | Image.Image | np.ndarray, decoder: str = 'pillow') -> np.ndarray:
    """A picture as RGB.

    Args:
        source: path, Pillow image, or array of uint8 RGB values, shape (h, w, 3).
        decoder (str): whose treatment of a grey picture with transparency is followed: ``pillow`` lays it on a canvas,
            ``opencv`` leaves the transparency out.

    Returns:
        np.ndarray: uint8, shape (h, w, 3), turned as its EXIF data say.

    Raises:
        ExportError: if it cannot be read, has another form or no size.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ExportError(f'a picture given as an array must be uint8 RGB of shape (h, w, 3), got {source.dtype} '
                              f'of shape {source.shape}')
        picture = source
    elif not isinstance(source, (str, os.PathLike, Image.Image)):
        raise ExportError(f'a picture must be a path, a Pillow image or an array, got {type(source).__name__}')
    else:
        try:
            if isinstance(source, Image.Image):
                picture = _as_rgb(source, decoder)
            else:
                with Image.open(Path(source)) as image:
                    picture = _as_rgb(image, decoder)
        except MemoryError:
            raise
        except Exception as error:  # whatever decoders raise at what is no picture
            raise ExportError(f'{source} cannot be read as a picture ({first_line(error)})') from error
    if 0 in picture.shape:
        raise ExportError(f'a picture of {picture.shape[1]} x {picture.shape[0]} pixels has no size')
    return picture


def _as_rgb(image: Image.Image, decoder: str) -> np.ndarray:
    is_png, image = image.format == 'PNG', turned(image)
    if image.mode == 'I' and is_png:  # Pillow before 11 opens its 16 bits so
        return _of_16_bits(np.asarray(image))
    if image.mode in ('I', 'F'):
        raise ValueError(f"its values are of Pillow's mode {image.mode}, which has no white; save it in 8 or 16 bits")
    if image.mode.startswith('I;16'):
        return _of_16_bits(np.asarray(image))
    if image.mode == 'LA' and decoder == 'pillow':
        canvas, layer = Image.new('RGB', image.size, CANVAS), image.convert('RGBA')
        canvas.paste(layer, mask=layer.split()[3])
        image = canvas
    return np.asarray(image.convert('RGB'))


def turned(image: Image.Image) -> Image.Image:
    """A picture as its EXIF data say; ``ImageOps.exif_transpose`` writes all of these anew, and fails at odd ones."""
    image.load()
    turn = None if image.format == 'TIFF' else TURNS.get(_orientation(image))  # a TIFF is turned when it is loaded
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # whatever Pillow raises at EXIF data that are none
        return None


def _of_16_bits(values: np.ndarray) -> np.ndarray:
    return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height of a picture file as it is shown, turned as its EXIF data say; pixels are not read.

    Args:
        path (str | os.PathLike): of a picture of any size.

    Raises:
        OSError, ValueError: if it is no picture.
    """
    with _of_any_size(), Image.open(Path(path)) as image:
        # Some versions of Pillow turn the size of a TIFF when it is opened.
        size = tuple(image.tag_v2[tag] for tag in TIFF_SIZE) if image.format == 'TIFF' else image.size
        return size[::-1] if _orientation(image) in range(5, 9) else size


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Pillow refuses to open what would take much memory, which a header does not."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def prepare(picture: np.ndarray, rule: dict) -> Prepared:
    """Resize and normalise.

    Args:
        picture (np.ndarray): uint8 RGB, shape (h, w, 3).
        rule (dict): ``input`` of the exported folder.

    Returns:
        Prepared: see there.
    """
    height, width = picture.shape[:2]
    size = resized_size((width, height), rule['resize'])
    if size != (width, height):
        picture = RESIZE[rule['resize']['interpolation']](picture, size)
    mean, std = (np.array(rule[name], dtype=np.float32)[:, None, None] for name in ('mean', 'std'))
    pixels = picture.transpose(2, 0, 1).astype(np.float32)
    if rule['channel_order'] == 'bgr':
        pixels = pixels[::-1]
    return Prepared((pixels - mean) / std, size, (size[0] / width, size[1] / height))


def resized_size(size: tuple[int, int], rule: dict | None) -> tuple[int, int]:
    """Width and height of the network input before padding, at least 1 each."""
    if rule is None or rule['scale'] is None:
        return size
    wanted, (width, height) = rule['scale'], size
    if not rule['keep_ratio']:
        return tuple(wanted)
    factor = min(max(wanted) / max(width, height), min(wanted) / min(width, height))
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def batch(prepared: list[Prepared], rule: dict) -> np.ndarray:
    """Pictures padded below and to the right to one size, float32, shape (B, 3, H, W)."""
    divisor = rule['size_divisor']
    width, height = (max(divisor, math.ceil(max(one.size[axis] for one in prepared) / divisor) * divisor)
                     for axis in (0, 1))
    images = np.full((len(prepared), 3, height, width), rule['pad_value'], dtype=np.float32)
    for image, one in zip(images, prepared, strict=True):
        image[:, :one.size[1], :one.size[0]] = one.pixels
    return images


def resize_by_pillow(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with antialiasing."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def resize_as_opencv(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As OpenCV's bilinear: no antialiasing, weights of 11 bits; halves are means of four."""
    height, width = picture.shape[:2]
    if (width, height) == (2 * size[0], 2 * size[1]):
        four = picture.reshape(size[1], 2, size[0], 2, 3).astype(np.uint16)
        return ((four.sum(axis=(1, 3), dtype=np.uint16) + 2) >> 2).astype(np.uint8)
    left, right, left_weight, right_weight = _neighbours(width, size[0])
    upper, lower, upper_weight, lower_weight = _neighbours(height, size[1])
    source = picture.astype(np.int32)
    rows = source[:, left] * left_weight[:, None] + source[:, right] * right_weight[:, None]
    # 8 bits of value and 11 of weight: 4 go before the second product, 16 after, the last 2 with rounding.
    rows >>= 4
    upper_part = (upper_weight[:, None, None] * rows[upper]) >> 16
    lower_part = (lower_weight[:, None, None] * rows[lower]) >> 16
    return np.clip((upper_part + lower_part + 2) >> 2, 0, 255).astype(np.uint8)


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    outside = (first < 0) | (first >= source - 1)
    first, share = first.clip(0, source - 1), np.where(outside, np.float32(0), share)
    one = np.float32(2**COEFFICIENT_BITS)
    weights = (np.rint(part * one).astype(np.int32) for part in (1 - share, share))
    return first, (first + 1).clip(max=source - 1), *weights


RESIZE = dict(pillow=resize_by_pillow, opencv=resize_as_opencv)
