"""Kinds of errors, each on a case made for it."""

import contextlib
import io

import pytest
from made_detections import made_detections, made_objects
from pycocotools.coco import COCO

from mmdet_diffusion.evaluation.average_precision import match_detections
from mmdet_diffusion.evaluation.error_types import KINDS, error_types

BOX = [10, 10, 40, 40]


def truth_of(*objects):
    """One image with objects (box, class)."""
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=1, width=200, height=200)], categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=[dict(id=number, image_id=1, category_id=label, bbox=box, area=box[2] * box[3], iscrowd=0)
                     for number, (box, label) in enumerate(objects, start=1)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def detection(box, label, score=0.9):
    return dict(image_id=1, category_id=label, bbox=box, score=score)


SHIFTED = [30, 10, 40, 40]  # IoU 1/3 with BOX
CASES = {
    'classification': ([(BOX, 1)], [detection(BOX, 2)]),
    'localisation': ([(BOX, 1)], [detection(SHIFTED, 1)]),
    'both': ([(BOX, 1)], [detection(SHIFTED, 2)]),
    'duplicate': ([(BOX, 1)], [detection(BOX, 1), detection([11, 10, 40, 40], 1, 0.5)]),
    'background': ([(BOX, 1)], [detection([120, 120, 40, 40], 1)]),
    'missed': ([(BOX, 1), ([120, 120, 40, 40], 1)], [detection(BOX, 1)]),
}


@pytest.mark.parametrize('kind', KINDS)
def test_an_error_is_of_its_kind(kind):
    objects, detections = CASES[kind]
    counts = error_types(truth_of(*objects), detections).counts
    also = {'missed'} if kind in ('both', 'background') else set()  # nothing else is near the object
    assert {name for name, number in counts.items() if number} == {kind} | also


@pytest.mark.parametrize(('kind', 'gain'), [('classification', 1), ('localisation', 1), ('missed', 0.5)])
def test_what_a_kind_costs_is_what_mending_it_gains(kind, gain):
    objects, detections = CASES[kind]
    found = error_types(truth_of(*objects), detections)
    assert found.lost[kind] == pytest.approx(gain, abs=0.01)


@pytest.mark.parametrize('turned', [False, True])
def test_of_two_objects_that_it_overlaps_alike_a_detection_has_the_one_that_pycocotools_gives_it(turned):
    objects = [([0, 0, 40, 40], 1), ([20, 0, 40, 40], 1)]
    truth = truth_of(*objects[::-1] if turned else objects)
    detections = [detection([10, 0, 40, 40], 1, 0.9), detection([20, 0, 40, 40], 1, 0.8)]
    found = error_types(truth, detections)
    assert found.ap50 == pytest.approx(match_detections(truth, detections).ap(iou=0.5), abs=1e-12)
    assert sum(found.counts.values()) == (0 if turned else 2)


def test_a_false_detection_of_higher_score_costs_what_its_removal_gains():
    found = error_types(truth_of((BOX, 1)), [detection([120, 120, 40, 40], 1, 0.95), detection(BOX, 1)])
    assert found.ap50 == pytest.approx(0.5) and found.lost['background'] == pytest.approx(0.5)
    assert found.lost['localisation'] == 0


def test_a_detection_of_lower_score_that_would_have_a_taken_object_goes_when_mended():
    found = error_types(truth_of((BOX, 1)), [detection(SHIFTED, 1, 0.95), detection(BOX, 1)])
    assert found.counts['localisation'] == 1 and found.lost['localisation'] == pytest.approx(0.5)


@pytest.mark.parametrize('seed', range(4))
def test_ap50_is_that_of_the_matches_and_no_mending_lowers_it(seed):
    truth = made_objects(seed=seed, num_images=30)
    detections = made_detections(truth, seed, spread=0.2)
    found = error_types(truth, detections)
    assert found.ap50 == pytest.approx(match_detections(truth, detections).ap(iou=0.5), abs=1e-9)
    assert all(gain >= -1e-9 for gain in found.lost.values())
    assert all(found.counts[kind] for kind in ('localisation', 'background', 'missed'))
    number = sum(not one['iscrowd'] for one in truth.dataset['annotations'])
    for groups in (found.by_size, found.by_crowding):
        assert {kind: sum(group[kind] for group in groups.values()) for kind in KINDS} == found.counts
        assert sum(group['objects'] for group in groups.values()) == number
    assert len(found.found) == number and 0 < sum(found.found) < number


def test_a_hundred_detections_of_each_class_in_an_image_count_as_in_ap50():
    boxes = [[10.0 * (place % 20), 10.0 * (place // 20), 8.0, 8.0] for place in range(160)]
    objects = [dict(id=place + 1, image_id=1, category_id=place % 2 + 1, bbox=box, area=64.0, iscrowd=0)
               for place, box in enumerate(boxes)]
    truth = COCO()
    truth.dataset = dict(images=[dict(id=1, width=200, height=80)], annotations=objects,
                         categories=[dict(id=1, name='a'), dict(id=2, name='b')])
    truth.createIndex()
    detections = [dict(image_id=1, category_id=one['category_id'], bbox=one['bbox'], score=0.9) for one in objects]
    found = error_types(truth, detections)
    assert found.ap50 == pytest.approx(match_detections(truth, detections).ap(iou=0.5)) == pytest.approx(1)
    assert found.counts['missed'] == 0


def test_errors_are_counted_by_the_size_of_their_object_and_by_the_crowding_of_their_image():
    small, large = [10, 10, 20, 20], [60, 60, 120, 120]
    found = error_types(truth_of((small, 1), (large, 1)), [
        detection([15, 10, 40, 40], 1), detection(large, 1), detection(large, 1, 0.5), detection([0, 150, 50, 50], 1)])
    assert found.by_size == {
        'small': dict.fromkeys(KINDS, 0) | dict(objects=1, localisation=1),
        'medium': dict.fromkeys(KINDS, 0) | dict(objects=0, background=1),  # its own size: it is near no object
        'large': dict.fromkeys(KINDS, 0) | dict(objects=1, duplicate=1)}
    assert found.by_crowding['up to 2 in the image']['objects'] == 2 and found.by_crowding['more']['objects'] == 0
    assert found.found == [False, True]
