"""What kinds of errors cost a detector AP50, after TIDE (Bolya et al. 2020, arXiv:2008.08115).

A false detection has one kind, by its overlap with the objects of its image: with one of another class at least 0.5
(classification), with one of its own class from 0.1 (localisation) or of another (both), with one of its own class that
a detection of higher score has (duplicate), with none (background). An object that no detection has, nor would have
once these were right, is missed. What a kind costs is what AP50 gains where its errors are mended, each kind alone.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO

from .average_precision import (
    AREAS,
    MAX_DETECTIONS,
    MAX_LVIS_DETECTIONS,
    NO_OBJECTS,
    is_federated,
    mean_of_valid,
    not_exhaustive,
    scored_detections,
)

FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
SIZES = dict(small=32**2, medium=96**2, large=float('inf'))  # areas in pixels, as COCO has them
Array = np.ndarray


class ImageErrors(NamedTuple):
    """Detections of one image by falling score, with what is wrong with each.

    Attributes:
        scores (Array): shape (D,).
        labels (Array): shape (D,).
        areas (Array): of each detection's object, or else of its box, shape (D,).
        kinds (list[str]): ``true``, ``ignored``, or one of :data:`KINDS`.
        objects (list[int]): place of the object that a detection has or would have when mended; -1 for none.
        object_labels (Array): of the objects that count, shape (M,).
        object_areas (Array): the same.
        found (Array): whether a detection has the object, bool, shape (M,).
        missed (Array): whether it is missed, bool, shape (M,).
    """

    scores: Array
    labels: Array
    areas: Array
    kinds: list[str]
    objects: list[int]
    object_labels: Array
    object_areas: Array
    found: Array
    missed: Array


class ErrorTypes(NamedTuple):
    """Errors of a detector on a data set.

    Attributes:
        ap50 (float): as it is.
        lost (dict[str, float]): AP50 that each kind costs.
        counts (dict[str, int]): errors of each kind.
        by_size (dict[str, dict[str, int]]): of each size of objects: how many there are (``objects``), and errors of
            each kind. The size of a false detection is that of the object that it would have, or else its own.
        by_crowding (dict[str, dict[str, int]]): the same by the number of objects in an image: up to the median over
            objects, and above it.
        found (list[bool]): of each object, in the order of images and annotations, whether a detection has it.
    """

    ap50: float
    lost: dict[str, float]
    counts: dict[str, int]
    by_size: dict[str, dict[str, int]]
    by_crowding: dict[str, dict[str, int]]
    found: list[bool]


def error_types(truth: COCO, detections: Sequence[dict]) -> ErrorTypes:
    """Errors of detections in COCO's form."""
    of_image = {number: [] for number in truth.getImgIds()}
    for detection in scored_detections(truth, detections):
        of_image[detection['image_id']].append(detection)
    most = MAX_LVIS_DETECTIONS if is_federated(truth) else MAX_DETECTIONS
    images = [image_errors(truth.imgToAnns[number], found, not_exhaustive(truth, number), most=most)
              for number, found in of_image.items()]
    labels = truth.getCatIds()
    ap50 = _ap50(images, labels)
    lost = {kind: _ap50([mended(image, kind) for image in images], labels) - ap50 for kind in KINDS}
    counts = {kind: sum(image.kinds.count(kind) for image in images) for kind in KINDS}
    counts['missed'] = int(sum(image.missed.sum() for image in images))
    found = [bool(one) for image in images for one in image.found]
    return ErrorTypes(ap50, lost, counts, _by_size(images), _by_crowding(images), found)


def image_errors(annotations: Sequence[Mapping], detections: Sequence[Mapping], ignored: Sequence[int] = (), *,
                 most: int = MAX_DETECTIONS) -> ImageErrors:
    """Match the detections of one image as AP50 does, and name what is wrong with the others.

    Args:
        annotations (Sequence[Mapping]): objects of the image, in COCO's form.
        detections (Sequence[Mapping]): in COCO's form.
        ignored (Sequence[int]): classes whose detections without an object are no errors.
        most (int): detections of a class that count.
    """
    detections = _best_of_each_class(detections, most)
    objects = [one for one in annotations if not one['iscrowd']]
    crowds = [one for one in annotations if one['iscrowd']]
    labels = np.array([one['category_id'] for one in objects], dtype=int)
    ious = _ious([one['bbox'] for one in detections], [one['bbox'] for one in objects])
    in_crowds = _ious([one['bbox'] for one in detections], [one['bbox'] for one in crowds], share_of_first=True)
    owner = np.full(len(objects), -1)
    kinds, places = [], []
    for place, detection in enumerate(detections):
        free = np.where((labels == detection['category_id']) & (owner < 0), ious[place], -1)
        if len(free) and free.max() >= FOREGROUND:
            best = len(free) - 1 - int(free[::-1].argmax())  # the last of equals, as pycocotools
            owner[best] = place
            kinds.append('true')
            places.append(best)
        else:
            kinds.append('')
            places.append(-1)
    for place, detection in enumerate(detections):
        if kinds[place]:
            continue
        same = [one['category_id'] == detection['category_id'] for one in crowds]
        in_crowd = any(share >= FOREGROUND for share, is_same in zip(in_crowds[place], same, strict=True) if is_same)
        if in_crowd or detection['category_id'] in ignored:
            kinds[place] = 'ignored'
            continue
        kinds[place], places[place] = _kind(ious[place], labels == detection['category_id'], owner)
    mendable = {one for one, kind in zip(places, kinds, strict=True) if kind in ('classification', 'localisation')}
    found = owner >= 0
    missed = ~found & ~np.isin(np.arange(len(objects)), sorted(mendable))
    object_areas = np.array([one['area'] for one in objects], dtype=float)
    areas = [object_areas[place] if place >= 0 else one['bbox'][2] * one['bbox'][3]
             for place, one in zip(places, detections, strict=True)]
    return ImageErrors(np.array([one['score'] for one in detections]),
                       np.array([one['category_id'] for one in detections], dtype=int), np.array(areas), kinds, places,
                       labels, object_areas, found, missed)


def _best_of_each_class(detections: Sequence[Mapping], most: int) -> list[Mapping]:
    """By falling score."""
    seen, kept = Counter(), []
    for detection in sorted(detections, key=lambda one: -one['score']):
        seen[detection['category_id']] += 1
        if seen[detection['category_id']] <= most:
            kept.append(detection)
    return kept


def _kind(ious: Array, is_same: Array, owner: Array) -> tuple[str, int]:
    """Kind of a false detection, and the object that it would have."""
    same, other = np.where(is_same, ious, 0), np.where(is_same, 0, ious)
    if same.size and BACKGROUND <= same.max() < FOREGROUND:
        return 'localisation', int(same.argmax())
    if other.size and other.max() >= FOREGROUND:
        return 'classification', int(other.argmax())
    if same.size and same.max() >= FOREGROUND and owner[same.argmax()] >= 0:
        return 'duplicate', -1
    if other.size and other.max() >= BACKGROUND:
        return 'both', -1
    return 'background', -1


def mended(image: ImageErrors, kind: str) -> ImageErrors:
    """An image without the errors of a kind: a detection that would have a free object has it, others go."""
    if kind == 'missed':
        kept = ~image.missed
        return image._replace(object_labels=image.object_labels[kept], object_areas=image.object_areas[kept],
                              found=image.found[kept], missed=image.missed[kept])
    labels, kinds, found = image.labels.copy(), list(image.kinds), image.found.copy()
    for place, one in enumerate(image.kinds):
        if one != kind:
            continue
        target = image.objects[place]
        if target >= 0 and not found[target]:
            labels[place], kinds[place], found[target] = image.object_labels[target], 'true', True
        else:
            kinds[place] = 'ignored'
    return image._replace(labels=labels, kinds=kinds, found=found)


def _ap50(images: Sequence[ImageErrors], labels: Sequence[int]) -> float:
    scores = np.concatenate([image.scores for image in images])
    of = np.concatenate([image.labels for image in images])
    kinds = np.array([kind for image in images for kind in image.kinds], dtype=object)
    objects = np.concatenate([image.object_labels for image in images])
    counted = kinds != 'ignored'
    of, scores, true = of[counted], scores[counted], kinds[counted] == 'true'
    order = np.lexsort((-scores, of))  # class by class; it keeps the order of equals
    of, true = of[order], true[order]
    return mean_of_valid(np.array([_precision(true[slice(*np.searchsorted(of, [label, label + 1]))],
                                              np.count_nonzero(objects == label)) for label in labels]))


def _precision(true: Array, number: int) -> float:
    if number == 0:
        return NO_OBJECTS
    found = np.cumsum(true)
    precision = np.maximum.accumulate((found / np.arange(1, len(true) + 1))[::-1])[::-1]
    places = np.searchsorted(found / number, np.linspace(0, 1, 101), side='left')
    return float(np.append(precision, 0)[np.minimum(places, len(true))].mean())


def _by_size(images: Sequence[ImageErrors]) -> dict[str, dict[str, int]]:
    bounds = list(SIZES.values())
    return _grouped(images, AREAS[1:], lambda image: (np.searchsorted(bounds, image.object_areas, side='right'),
                                                      np.searchsorted(bounds, image.areas, side='right')))


def _by_crowding(images: Sequence[ImageErrors]) -> dict[str, dict[str, int]]:
    numbers = np.concatenate([np.full(len(image.missed), len(image.missed)) for image in images])
    middle = int(np.median(numbers)) if len(numbers) else 0
    return _grouped(images, (f'up to {middle} in the image', 'more'), lambda image: tuple(
        np.full(number, int(len(image.missed) > middle)) for number in (len(image.missed), len(image.kinds))))


def _grouped(images: Sequence[ImageErrors], names: Sequence[str],
             groups: Callable[[ImageErrors], tuple[Array, Array]]) -> dict[str, dict[str, int]]:
    """Objects and errors of each group; ``groups`` gives the group of each object and of each detection."""
    counts = {name: dict.fromkeys(('objects', *KINDS), 0) for name in names}
    for image in images:
        of_objects, of_detections = groups(image)
        for group, is_missed in zip(of_objects, image.missed, strict=True):
            counts[names[group]]['objects'] += 1
            counts[names[group]]['missed'] += int(is_missed)
        for group, kind in zip(of_detections, image.kinds, strict=True):
            if kind in KINDS:
                counts[names[group]][kind] += 1
    return counts


def _ious(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *,
          share_of_first: bool = False) -> Array:
    """IoU of xywh boxes, shape (D, M); or how much of each of the first lies in each of the second."""
    a, b = (np.array(boxes, dtype=float).reshape(-1, 4) for boxes in (first, second))
    ends = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    overlap = (ends - np.maximum(a[:, None, :2], b[None, :, :2])).clip(min=0).prod(-1)
    areas = a[:, 2:].prod(-1)[:, None]
    whole = areas if share_of_first else areas + b[:, 2:].prod(-1)[None] - overlap
    return overlap / np.maximum(whole, np.spacing(1))
