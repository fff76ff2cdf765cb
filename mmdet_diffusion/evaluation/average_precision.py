"""Average precision of detections that were matched once, for any weights of the images.

pycocotools matches detections to objects in each image on its own (``COCOeval.evaluateImg``), so a bootstrap over
images need not match again: images are weighted by how often they were drawn. With equal weights the figures are those
of pycocotools, unrounded.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

AREAS = ('all', 'small', 'medium', 'large')
NO_OBJECTS = -1.0  # as pycocotools says it
# Of an image of LVIS, whose classes are not all looked for in every image: those that are not there, and those of which
# not all objects are annotated (Gupta et al. 2019, arXiv:1908.03195, Sec. 2.1).
FEDERATED = ('neg_category_ids', 'not_exhaustive_category_ids')
MAX_DETECTIONS, MAX_LVIS_DETECTIONS = 100, 300  # of a class in an image; of an image
BLOCK = 50  # weightings computed at once
Array = np.ndarray


class ClassMatches(NamedTuple):
    """Detections of one class and area range in all images, by falling score.

    Attributes:
        image (Array): place of each detection's image, int64, shape (D,).
        ignored (Array): detections that count neither way, at each IoU threshold, bool, shape (T, D).
        true (tuple[Array, ...]): for each IoU threshold, places of the true detections among D, int64.
        num_objects (Array): objects of each image that count, float64, shape (I,).
    """

    image: Array
    ignored: Array
    true: tuple[Array, ...]
    num_objects: Array


class ImageMatches:
    """A detector's detections on a data set, matched to its objects.

    Args:
        evaluation (COCOeval): after ``evaluate()``.

    Attributes:
        draws (dict[tuple[int, int], Array]): APs of the draws of a bootstrap, by their number and seed, once known.
    """

    def __init__(self, evaluation: COCOeval) -> None:
        parameters = evaluation.params
        self.iou_thresholds = np.asarray(parameters.iouThrs)
        self.recall_thresholds = np.asarray(parameters.recThrs)
        self.class_names = tuple(evaluation.cocoGt.cats[number]['name'] for number in parameters.catIds)
        self.image_ids = tuple(parameters.imgIds)
        self.draws: dict[tuple[int, int, int], Array] = {}
        self._matches = {}
        num_images, num_areas = len(self.image_ids), len(parameters.areaRng)
        for class_index in range(len(self.class_names)):
            for area_index, area in enumerate(parameters.areaRngLbl):
                start = (class_index * num_areas + area_index) * num_images
                images = evaluation.evalImgs[start:start + num_images]
                self._matches[class_index, area] = _join(images, parameters.maxDets[-1], len(self.iou_thresholds))

    @property
    def num_images(self) -> int:
        """I, images of the data set."""
        return len(self.image_ids)

    def precision(self, weights: Array | None = None, area: str = 'all') -> Array:
        """Average precision by IoU threshold and class.

        Args:
            weights (Array, optional): how often each image counts, shape (I,). None: once.
            area (str): ``all``, ``small``, ``medium`` or ``large``, as pycocotools has them.

        Returns:
            Array: float64, shape (T, K); -1 where a class has no object.
        """
        weights = np.ones(self.num_images) if weights is None else np.asarray(weights, dtype=np.float64)
        return self._precision(weights[None], area)[0]

    def _precision(self, weights: Array, area: str) -> Array:
        """Shape (R, T, K) for weights of shape (R, I)."""
        return np.stack([_class_precision(self._matches[index, area], weights, self.recall_thresholds)
                         for index in range(len(self.class_names))], axis=2)

    def drawn_aps(self, weights: Array) -> Array:
        """AP for many weights at once.

        Args:
            weights (Array): shape (R, I).

        Returns:
            Array: float64, shape (R,).
        """
        blocks = [self._precision(weights[start:start + BLOCK].astype(np.float64), 'all')
                  for start in range(0, len(weights), BLOCK)]
        return np.array([mean_of_valid(values) for block in blocks for values in block])

    def ap(self, weights: Array | None = None, area: str = 'all', iou: float | None = None) -> float:
        """AP over classes and IoU thresholds, or at one of them; -1 where there is no object at all."""
        return mean_of_valid(self._at(self.precision(weights, area), iou))

    def class_ap(self, iou: float | None = None) -> dict[str, float]:
        """AP of each class."""
        values = self._at(self.precision(), iou)
        return {name: mean_of_valid(values[..., index]) for index, name in enumerate(self.class_names)}

    def summary(self) -> dict[str, float]:
        """AP, AP50, AP75 and AP by size, in [0, 1]."""
        values = self.precision()
        by_size = {f'AP_{area}': self.ap(area=area) for area in AREAS[1:]}
        return dict(AP=mean_of_valid(values), AP50=mean_of_valid(self._at(values, 0.5)),
                    AP75=mean_of_valid(self._at(values, 0.75)), **by_size)

    def _at(self, values: Array, iou: float | None) -> Array:
        if iou is None:
            return values
        place, = np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        return values[place]


def _class_precision(matches: ClassMatches, weights: Array, recall_thresholds: Array) -> Array:
    """The mean over recall thresholds of the highest precision at that recall or above, shape (R, T)."""
    num_objects = np.einsum('ri,i->r', weights, matches.num_objects)  # no BLAS: see scoring.forked_map
    result = np.zeros((len(weights), len(matches.true)))
    end = max((true[-1] + 1 for true in matches.true if len(true)), default=0)  # false ones after it change nothing
    weight = weights[:, matches.image[:end]]
    all_counted = np.cumsum(weight, axis=1)
    # One search for all rows: each has its own range of values.
    row = 2.0 * np.arange(len(weights))[:, None]
    for index, true in enumerate(matches.true):
        if not len(true):
            continue
        ignored = matches.ignored[index, :end]
        counted = np.cumsum(np.where(ignored, 0, weight), axis=1) if ignored.any() else all_counted
        found = np.cumsum(weight[:, true], axis=1)
        # Precision falls at false detections and recall stays, so true ones alone need to be looked at.
        precision = found / (counted[:, true] + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = found / np.maximum(num_objects, np.spacing(1))[:, None]
        places = np.searchsorted((recall + row).ravel(), (recall_thresholds + row).ravel(), side='left')
        places = places.reshape(len(weights), -1) - len(true) * np.arange(len(weights))[:, None]
        padded = np.append(precision, np.zeros((len(weights), 1)), axis=1)
        result[:, index] = np.take_along_axis(padded, np.minimum(places, len(true)), axis=1).mean(1)
    result[num_objects == 0] = NO_OBJECTS
    return result


def mean_of_valid(values: Array) -> float:
    """Mean of what is not -1; -1 where nothing is."""
    valid = values[values > NO_OBJECTS]
    return float(valid.mean()) if valid.size else NO_OBJECTS


def _join(images: Sequence[dict | None], max_detections: int, num_thresholds: int) -> ClassMatches:
    """Records of one class and area range, joined. An image with neither object nor detection has none."""
    scores, image, matched, ignored = [np.zeros(0)], [np.zeros(0, int)], [np.zeros((num_thresholds, 0), bool)], []
    ignored.append(matched[0])
    num_objects = np.zeros(len(images))
    for place, record in enumerate(images):
        if record is None:
            continue
        kept = slice(0, max_detections)
        scores.append(np.asarray(record['dtScores'][kept]))
        image.append(np.full(len(scores[-1]), place))
        matched.append(record['dtMatches'][:, kept].astype(bool))
        ignored.append(record['dtIgnore'][:, kept].astype(bool))
        num_objects[place] = np.count_nonzero(np.asarray(record['gtIgnore']) == 0)
    order = np.argsort(-np.concatenate(scores), kind='mergesort')
    ignored_all = np.concatenate(ignored, axis=1)[:, order]
    true = np.concatenate(matched, axis=1)[:, order] & ~ignored_all
    true_places = tuple(np.flatnonzero(row) for row in true)
    return ClassMatches(np.concatenate(image)[order], ignored_all, true_places, num_objects)


def match_detections(ground_truth: COCO, detections: Sequence[dict]) -> ImageMatches:
    """Match detections with pycocotools.

    Args:
        ground_truth (COCO): of the data set; where its images have :data:`FEDERATED`, LVIS's rules hold.
        detections (Sequence[dict]): in COCO's form: ``image_id``, ``category_id``, ``bbox`` xywh in pixels, ``score``.

    Returns:
        ImageMatches: with at most 100 detections of a class in an image, as COCO's AP has it, or 300 of an image by
            LVIS's rules.
    """
    detections, federated = scored_detections(ground_truth, detections), is_federated(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        found = ground_truth.loadRes(detections) if detections else COCO()
        evaluation = COCOeval(ground_truth, found, 'bbox')
        if not detections:
            evaluation.params.imgIds, evaluation.params.catIds = ground_truth.getImgIds(), ground_truth.getCatIds()
            found.dataset, found.imgs = dict(images=[], annotations=[], categories=[]), ground_truth.imgs
        if federated:
            evaluation.params.maxDets = [MAX_LVIS_DETECTIONS]
        evaluation.evaluate()
    for record in filter(None, evaluation.evalImgs if federated else ()):
        if record['category_id'] in not_exhaustive(ground_truth, record['image_id']):
            record['dtIgnore'] = np.logical_or(record['dtIgnore'], record['dtMatches'] == 0)
    return ImageMatches(evaluation)


def is_federated(ground_truth: COCO) -> bool:
    """Whether LVIS's rules hold: not all classes were looked for in all images."""
    return any(FEDERATED[0] in image for image in ground_truth.dataset['images'])


def not_exhaustive(ground_truth: COCO, image_id: int) -> Sequence[int]:
    """Classes of an image of which detections without an object are no errors."""
    return ground_truth.imgs[image_id].get(FEDERATED[1], ())


def scored_detections(ground_truth: COCO, detections: Sequence[dict]) -> list[dict]:
    """Those that are right or wrong: by LVIS's rules the best of each image, of classes that were looked for in it."""
    if not is_federated(ground_truth):
        return list(detections)
    of_image = {}
    for detection in detections:
        of_image.setdefault(detection['image_id'], []).append(detection)
    scored = []
    for image_id, found in of_image.items():
        known = {one['category_id'] for one in ground_truth.imgToAnns[image_id]}
        known.update(ground_truth.imgs[image_id][FEDERATED[0]])
        best = sorted(found, key=lambda one: -one['score'])[:MAX_LVIS_DETECTIONS]
        scored += [one for one in best if one['category_id'] in known]
    return scored
