"""Stand-ins beside compiled operators, in one process; skipped where none are compiled."""

import contextlib
import importlib
import itertools
import time
from unittest import mock

import numpy as np
import operator_cases as cases
import pytest
import torch
from mmcv import ops

import mmcv_stand_in

pytestmark = pytest.mark.skipif(mmcv_stand_in.is_active(), reason='this mmcv has no compiled operators to compare with')
PARTS = ('nms', 'roi_align', 'deform_conv', 'modulated_deform_conv')


@contextlib.contextmanager
def stand_ins():
    """In this context mmcv's functions call the stand-ins."""
    extension = importlib.import_module('mmcv_stand_in.extension')
    with contextlib.ExitStack() as stack:
        for part in PARTS:
            module = importlib.import_module(f'mmcv.ops.{part}')
            stack.enter_context(mock.patch.object(module, 'ext_module', extension))
        yield


def both(function, *arguments):
    """Results of the compiled operators and of the stand-ins."""
    compiled = function(*arguments)
    with stand_ins():
        return compiled, function(*arguments)


@pytest.mark.parametrize('results', [cases.nms_indices, cases.nms_match_groups])
def test_kept_boxes_are_the_same(results):
    compiled, ours = both(lambda: list(results()))
    for expected, found in zip(compiled, ours, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_soft_nms_is_the_same():
    compiled, ours = both(lambda: list(cases.soft_nms_results()))
    for expected, found in zip(compiled, ours, strict=True):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize('case', cases.ROI_ALIGN_CASES)
def test_roi_align_is_the_same(case):
    compare(*both(cases.roi_align, *case))


@pytest.mark.parametrize(('version', 'settings', 'scale'),
                         list(itertools.product((1, 2), cases.DEFORM_CONV_CASES, (0.0, 1.5))))
def test_deformable_convolution_is_the_same(version, settings, scale):
    compare(*both(cases.deform_conv, version, settings, scale))


def compare(compiled, ours):
    np.testing.assert_allclose(ours[0], compiled[0], rtol=0, atol=1e-5)
    for gradient, expected in zip(ours[1:], compiled[1:], strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4)


def detector_boxes(number, clusters, seed=0):
    """Boxes and scores as a detector gives them, ``clusters`` places in an image of 1333 x 800; many at each."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([1333.0, 800.0])
    centres = torch.rand((clusters, 2), generator=generator) * size
    sides = torch.rand((clusters, 2), generator=generator) * 200 + 10
    which = torch.randint(clusters, (number,), generator=generator)
    centre = centres[which] + torch.randn((number, 2), generator=generator) * sides[which] * 0.1
    side = sides[which] * (torch.randn((number, 2), generator=generator) * 0.1).exp()
    return torch.cat([centre - side / 2, centre + side / 2], dim=1), torch.rand(number, generator=generator)


def fastest(function, repetitions=30):
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize('clusters', [20, 200, 2000])
def test_nms_of_2000_boxes_takes_at_most_three_times_as_long(clusters):
    boxes, scores = detector_boxes(2000, clusters)
    compiled = ops.nms(boxes, scores, 0.5)[1]
    compiled_time = fastest(lambda: ops.nms(boxes, scores, 0.5))
    with stand_ins():
        torch.testing.assert_close(ops.nms(boxes, scores, 0.5)[1], compiled, rtol=0, atol=0)
        ratio = fastest(lambda: ops.nms(boxes, scores, 0.5)) / compiled_time
    print(f'{len(compiled)} of 2000 boxes kept: {ratio:.2f} times as long')
    assert ratio <= 3
