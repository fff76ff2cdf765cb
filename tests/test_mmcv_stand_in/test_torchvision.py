"""torchvision's kernels where it works, ours where it does not; torchvision is acted."""

import importlib
import sys
import types

import numpy as np
import operator_cases as cases
import pytest
import torch

from mmcv_stand_in.kernels.torchvision_operators import torchvision_operator

extension = importlib.import_module('mmcv_stand_in.extension')


@pytest.fixture(autouse=True)
def nothing_cached():
    torchvision_operator.cache_clear()
    yield
    torchvision_operator.cache_clear()


def act(monkeypatch, **operators):
    ops = types.ModuleType('torchvision.ops')
    vars(ops).update(operators)
    monkeypatch.setitem(sys.modules, 'torchvision', types.ModuleType('torchvision'))
    monkeypatch.setitem(sys.modules, 'torchvision.ops', ops)


def nms_by_loops(boxes, scores, iou_threshold):
    """As torchvision: sorted by score and stable, float32 overlaps against the threshold in float64."""
    kept = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in scores.sort(dim=0, descending=True, stable=True)[1].tolist():
        for other in kept:
            corner = torch.maximum(boxes[index, :2], boxes[other, :2])
            shared = (torch.minimum(boxes[index, 2:], boxes[other, 2:]) - corner).clamp(min=0).prod()
            if float(shared / (areas[index] + areas[other] - shared)) > iou_threshold:
                break
        else:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long)


@pytest.mark.parametrize('error', [ImportError, RuntimeError, OSError, AttributeError])
def test_a_torchvision_that_does_not_work_is_left_alone(monkeypatch, error):
    def broken(*args):
        raise error('operator torchvision::nms does not exist')

    act(monkeypatch, nms=broken, deform_conv2d=broken)
    assert torchvision_operator('nms', 'cpu') is None and torchvision_operator('deform_conv2d', 'cpu') is None
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1]])
    assert extension.nms(boxes, torch.tensor([0.9, 0.8]), 0.5, 0).tolist() == [0]


def test_boxes_kept_by_torchvision_are_those_that_we_keep(monkeypatch):
    sets = [case for case in list(cases.box_sets())[:200] if case.offset == 0]
    torchvision_operator.cache_clear()
    ours = [extension.nms(case.boxes, case.scores, case.iou_threshold, 0) for case in sets]
    torchvision_operator.cache_clear()
    act(monkeypatch, nms=nms_by_loops)
    assert torchvision_operator('nms', 'cpu') is nms_by_loops
    for case, expected in zip(sets, ours, strict=True):
        assert torch.equal(extension.nms(case.boxes, case.scores, case.iou_threshold, 0), expected)


def test_boxes_of_offset_one_are_not_given_to_torchvision_which_has_none(monkeypatch):
    calls = []

    def count(*args):
        calls.append(args)
        return nms_by_loops(*args)

    act(monkeypatch, nms=count)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1]])
    extension.nms(boxes, torch.tensor([0.9, 0.8]), 0.5, 1)
    assert not calls
    extension.nms(boxes, torch.tensor([0.9, 0.8]), 0.5, 0)
    assert len(calls) == 2  # the trial, and the call


@pytest.mark.parametrize('version', [1, 2])
def test_deformable_convolution_by_torchvision_gets_what_ours_gets(monkeypatch, version):
    """torchvision's order of arguments; the number of groups follows from the shapes."""
    ours = importlib.import_module('mmcv_stand_in.kernels.deformable_convolution')

    def deform_conv2d(images, offset, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), mask=None):
        assert bias is None
        settings = ours.Settings(stride, padding, dilation, images.size(1) // weight.size(1),
                                 offset.size(1) // (2 * weight[0, 0].numel()))
        masks = [None] * len(images) if mask is None else mask
        return torch.stack([ours._convolve(settings, *image, weight)
                            for image in zip(images, offset, masks, strict=True)])

    for name in ('deform_conv', 'modulated_deform_conv'):
        monkeypatch.setattr(importlib.import_module(f'mmcv.ops.{name}'), 'ext_module', extension)
    for settings in cases.DEFORM_CONV_CASES:
        torchvision_operator.cache_clear()
        expected = cases.deform_conv(version, settings, 1.5)
        torchvision_operator.cache_clear()
        with monkeypatch.context() as patch:
            act(patch, nms=lambda *args: None, deform_conv2d=deform_conv2d)
            for found, other in zip(cases.deform_conv(version, settings, 1.5), expected, strict=True):
                np.testing.assert_allclose(found, other, rtol=0, atol=1e-6)
