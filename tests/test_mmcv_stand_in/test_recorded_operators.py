"""Operators as recorded from compiled mmcv 2.1.0 on a CPU by ``record_operators.py``; stand-ins and compiled alike."""

import numpy as np
import operator_cases as cases
import pytest
from mmcv import ops


@pytest.fixture(scope='module')
def recording():
    return np.load(cases.RECORDING)


def split(recording, name):
    """The arrays that were joined, one for each set."""
    return np.split(recording[name], np.cumsum(recording[f'{name} lengths'][:-1], dtype=np.int64))


@pytest.mark.parametrize(('name', 'results'), [('nms', cases.nms_indices), ('nms_match', cases.nms_match_groups)])
def test_kept_boxes_of_all_sets_are_those_recorded(recording, name, results):
    recorded = split(recording, name)
    assert len(recorded) == cases.NUMBER_OF_SETS and sum(map(len, recorded)) > 10000
    for seed, (expected, found) in enumerate(zip(recorded, results(), strict=True)):
        np.testing.assert_array_equal(found, expected, err_msg=f'set {seed}')


def test_soft_nms_of_all_sets_is_that_recorded(recording):
    indices, scores = split(recording, 'soft_nms'), split(recording, 'soft_nms scores')
    assert len(indices) == cases.NUMBER_OF_SETS
    for seed, (index, score, found) in enumerate(zip(indices, scores, cases.soft_nms_results(), strict=True)):
        np.testing.assert_array_equal(found[0], index, err_msg=f'set {seed}')
        np.testing.assert_allclose(found[1], score, rtol=0, atol=1e-6, err_msg=f'set {seed}')


def test_the_sets_hold_equal_scores_equal_boxes_no_box_one_box_and_overlaps_of_just_the_threshold():
    sets = list(cases.box_sets())
    assert [len(case.boxes) for case in sets[:2]] == [0, 1]
    assert sum(len(case.scores.unique()) < len(case.scores) for case in sets) > 500
    assert sum(len(case.boxes.unique(dim=0)) < len(case.boxes) for case in sets) > 100
    kept = [[len(ops.nms(case.boxes, case.scores, case.iou_threshold - less, case.offset)[1]) for less in (0, 1e-6)]
            for case in sets]
    assert sum(fewer < number for number, fewer in kept) > 10


def compare(recording, name, results):
    """Results within 1e-5 of those recorded, gradients within 1e-4."""
    recorded = [recording[f'{name} {index}'] for index in range(len(results))]
    assert f'{name} {len(results)}' not in recording
    np.testing.assert_allclose(results[0], recorded[0], rtol=0, atol=1e-5)
    for gradient, expected in zip(results[1:], recorded[1:], strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('case', cases.ROI_ALIGN_CASES)
def test_roi_align_and_its_gradient_are_those_recorded(recording, case):
    compare(recording, f'roi_align {case}', cases.roi_align(*case))


@pytest.mark.parametrize('scale', [0.0, 1.5], ids=['on_cells', 'between_cells'])
@pytest.mark.parametrize('settings', cases.DEFORM_CONV_CASES)
@pytest.mark.parametrize('version', [1, 2])
def test_deformable_convolution_and_its_gradients_are_those_recorded(recording, version, settings, scale):
    compare(recording, f'deform_conv {version} {settings} {scale}', cases.deform_conv(version, settings, scale))
