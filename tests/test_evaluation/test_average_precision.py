"""Average precision against pycocotools."""

import contextlib
import io

import numpy as np
import pytest
from made_detections import made_detections, made_objects
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet_diffusion.evaluation.average_precision import match_detections


def pycocotools_stats(truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(detections), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6]


def repeated(truth, detections, counts):
    """The set with each image as often as it counts."""
    images, annotations, found = [], [], []
    for place, number in enumerate(truth.getImgIds()):
        for _ in range(counts[place]):
            new = len(images) + 1
            images.append(dict(truth.imgs[number], id=new))
            annotations += [dict(one, image_id=new) for one in truth.imgToAnns[number]]
            found += [dict(d, image_id=new) for d in detections if d['image_id'] == number]
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number
    copy = COCO()
    copy.dataset = dict(truth.dataset, images=images, annotations=annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        copy.createIndex()
    return copy, found


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_figures_are_those_of_pycocotools(seed, tied):
    truth = made_objects(seed=seed)
    detections = made_detections(truth, seed, tied=tied)
    expected = pycocotools_stats(truth, detections)
    found = list(match_detections(truth, detections).summary().values())
    assert 0.05 < found[0] < 0.95
    assert np.abs(np.array(found) - expected).max() < 1e-12


def test_a_class_without_detections_and_one_without_objects_count_as_there():
    truth = made_objects(num_classes=4)
    truth.dataset['annotations'] = [a for a in truth.dataset['annotations'] if a['category_id'] != 4]
    truth.createIndex()
    detections = [d for d in made_detections(truth) if d['category_id'] != 2]
    matches = match_detections(truth, detections)
    assert np.abs(np.array(list(matches.summary().values())) - pycocotools_stats(truth, detections)).max() < 1e-12
    assert matches.class_ap()['class 1'] == 0 and matches.class_ap()['class 3'] == -1


@pytest.mark.parametrize('seed', range(3))
def test_weights_are_repeated_images(seed):
    truth = made_objects(seed=seed)
    detections = made_detections(truth, seed)
    matches = match_detections(truth, detections)
    counts = np.bincount(np.random.default_rng(seed).integers(20, size=20), minlength=20)
    expected = pycocotools_stats(*repeated(truth, detections, counts))
    # Copies of one detection stand one after the other there and are one here, so recall passes a threshold later.
    assert matches.ap(counts) == pytest.approx(expected[0], abs=0.01)
    assert matches.ap(counts) != pytest.approx(matches.ap(), abs=1e-4)
    twice = match_detections(truth, detections).ap(np.full(20, 2))
    assert twice == pytest.approx(matches.ap(), abs=1e-12)


def test_an_image_that_weighs_nothing_could_as_well_not_be_there():
    truth = made_objects()
    detections = made_detections(truth)
    weights = np.ones(20)
    weights[3:9] = 0
    left = {number for number, weight in zip(truth.getImgIds(), weights, strict=True) if weight}
    fewer, found = repeated(truth, detections, weights.astype(int))
    assert len(left) == len(fewer.getImgIds())
    expected = match_detections(fewer, found).ap()
    assert match_detections(truth, detections).ap(weights) == pytest.approx(expected, abs=1e-12)


def test_no_detection_at_all_is_zero_and_no_object_is_minus_one():
    truth = made_objects()
    assert match_detections(truth, []).ap() == 0
    empty = made_objects()
    empty.dataset['annotations'] = []
    empty.createIndex()
    assert match_detections(empty, made_detections(truth)).ap() == -1
