"""Annotation files in COCO's form as they lie on the disk, and the sizes of their objects.

Only the standard library is imported, and nothing of this package: programs answer from here at once.
"""

import json
import math
from pathlib import Path
from statistics import mean, pstdev
from typing import NamedTuple

SMALLEST_DEVIATION = 0.05  # a set of nearly equal objects: noise would have no sizes to choose from


class Sizes(NamedTuple):
    """What :class:`SizeBBoxCoder` takes.

    Attributes:
        num_objects (int): that were measured.
        log_scale (tuple[float, float]): mean and deviation of log sqrt(w h), w and h in shares of the image.
        log_aspect (tuple[float, float]): mean and deviation of log sqrt(w / h).
    """

    num_objects: int
    log_scale: tuple[float, float]
    log_aspect: tuple[float, float]


def read_annotations(path: Path) -> dict:
    """The content of an annotation file.

    Raises:
        ValueError: if it is not there, no JSON, or has no images and annotations; the message is for the user.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise ValueError(f'{path} is no JSON: {error}') from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ('images',
                                                                                               'annotations')):
        raise ValueError(f'{path} has no lists of "images" and "annotations" as COCO annotation files have')
    return content


def measure_sizes(content: dict) -> Sizes:
    """Measure the objects of a COCO annotation file; crowds and boxes without area are left out.

    Raises:
        ValueError: if there are fewer than two objects, or one lacks its image or its box.
    """
    scales, aspects = [], []
    try:
        image_sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
        for annotation in content['annotations']:
            width, height = (side / full for side, full in zip(annotation['bbox'][2:], image_sizes[
                annotation['image_id']], strict=True))
            if width > 0 and height > 0 and not annotation.get('iscrowd'):
                scales.append(math.log(width * height) / 2)
                aspects.append(math.log(width / height) / 2)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f'an image or annotation is not as in COCO files ({type(error).__name__}: {error})') from error
    if len(scales) < 2:
        raise ValueError(f'it has {len(scales)} objects with an area; sizes need two at least, and mean little below '
                         "about 50: keep the paper's frame, box_sampler.signal_scale=2.0, for such a set")
    return Sizes(len(scales), _law(scales), _law(aspects))


def _law(values: list[float]) -> tuple[float, float]:
    return round(mean(values), 3), round(max(pstdev(values), SMALLEST_DEVIATION), 3)


def config_lines(sizes: Sizes) -> str:
    """Lines of a config, inside ``model.bbox_head``."""
    return ('box_sampler=dict(\n'
            "    signal_scale=None, padding='start',\n"
            f"    coder=dict(type='SizeBBoxCoder', log_scale={sizes.log_scale}, log_aspect={sizes.log_aspect})),")
