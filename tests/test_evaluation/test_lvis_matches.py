"""AP by LVIS's rules: equal to that of its own library, from matches that a bootstrap can weigh."""

import contextlib
import io
import json

import numpy as np
import pytest
from lvis import LVIS, LVISEval, LVISResults
from made_detections import made_detections, made_objects

from mmdet_diffusion.evaluation.average_precision import match_detections, scored_detections
from mmdet_diffusion.evaluation.bootstrap import Contestant, difference
from mmdet_diffusion.evaluation.error_types import error_types

CLASSES = 8


def federated_objects(seed=0):
    """Objects of which images know some classes, and some of those not to the last object."""
    truth, rng = made_objects(num_images=30, num_classes=CLASSES, seed=seed, crowd_share=0), np.random.default_rng(seed)
    for image in truth.dataset['images']:
        there = {one['category_id'] for one in truth.imgToAnns[image['id']]}
        absent = [number for number in range(1, CLASSES + 1) if number not in there]
        image['neg_category_ids'] = rng.choice(absent, min(3, len(absent)), replace=False).tolist()
        image['not_exhaustive_category_ids'] = [number for number in sorted(there) if rng.random() < 0.3]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def by_lvis(truth, detections, folder):
    """Results of LVIS's library."""
    categories = [dict(one, frequency='f') for one in truth.dataset['categories']]
    (folder / 'truth.json').write_text(json.dumps(dict(truth.dataset, categories=categories)))
    theirs = LVIS(str(folder / 'truth.json'))
    evaluation = LVISEval(theirs, LVISResults(theirs, [dict(one) for one in detections]), 'bbox')
    evaluation.run()
    return evaluation.get_results()


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('false', [3, 400])  # of an image 300 count
def test_ap_is_that_of_lvis(tmp_path, seed, false):
    truth = federated_objects(seed)
    detections = made_detections(truth, seed, false=false)
    expected, found = by_lvis(truth, detections, tmp_path), match_detections(truth, detections).summary()
    names = dict(AP='AP', AP50='AP50', AP75='AP75', APs='AP_small', APm='AP_medium', APl='AP_large')
    assert {name: found[ours] for name, ours in names.items()} == pytest.approx(
        {name: expected[name] for name in names}, abs=1e-12)
    assert 0 < found['AP'] < 1


def test_of_one_class_as_many_detections_count_as_of_all(tmp_path):
    truth, right = federated_objects(), {}
    for one in truth.dataset['annotations']:
        right.setdefault((one['image_id'], one['category_id']), []).append(one['bbox'])
    # 150 false ones of a class before those with an object: COCO would count a hundred.
    detections = [dict(image_id=image, category_id=label, bbox=box, score=score)
                  for (image, label), boxes in right.items()
                  for box, score in [*([[0.0, 0.0, 2.0, 2.0], 0.9 - 1e-4 * number] for number in range(150)),
                                     *([box, 0.5] for box in boxes)]
                  if label == min(one for number, one in right if number == image)]
    expected, found = by_lvis(truth, detections, tmp_path), match_detections(truth, detections)
    assert found.ap() == pytest.approx(expected['AP'], abs=1e-12) and expected['AP'] > 1e-3
    assert error_types(truth, detections).ap50 == pytest.approx(expected['AP50'], abs=1e-12)


def test_the_rules_matter():
    """Without them another AP comes out, so that the test above sees them."""
    truth = federated_objects()
    detections = made_detections(truth)
    found = match_detections(truth, detections).ap()
    for image in truth.dataset['images']:
        image['not_exhaustive_category_ids'] = []
    without_ignored = match_detections(truth, detections).ap()
    for image in truth.dataset['images']:
        del image['neg_category_ids'], image['not_exhaustive_category_ids']
    assert found > without_ignored > match_detections(truth, detections).ap()


def test_classes_that_were_not_looked_for_are_no_errors():
    truth = federated_objects()
    detections = made_detections(truth)
    scored = scored_detections(truth, detections)
    assert 0 < len(scored) < len(detections)
    errors = error_types(truth, detections)
    assert errors.ap50 == pytest.approx(match_detections(truth, detections).ap(iou=0.5), abs=1e-12)
    for image in truth.dataset['images']:
        image['not_exhaustive_category_ids'] = []
    assert errors.counts['background'] < error_types(truth, detections).counts['background'] < len(detections)


def test_two_detectors_differ_with_an_interval():
    truth = federated_objects()
    good, bad = (Contestant(str(spread), [[match_detections(truth, made_detections(truth, 1, spread=spread))]])
                 for spread in (0.03, 0.3))
    found = difference(good, bad, num_draws=200)
    assert found.is_difference and found.value > 0
