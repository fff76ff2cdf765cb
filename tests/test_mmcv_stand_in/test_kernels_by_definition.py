"""The kernels that mmcv compiles for GPUs alone, against their definitions; and derivatives against differences."""

import importlib
import math
from unittest import mock

import numpy as np
import operator_cases as cases
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch.nn import functional as F  # noqa: N812

PARTS = ('nms', 'focal_loss', 'roi_pool', 'roi_align', 'multi_scale_deform_attn', 'deform_conv',
         'modulated_deform_conv')
extension = importlib.import_module('mmcv_stand_in.extension')


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """The stand-ins are in use, where operators are compiled too."""
    for name in PARTS:
        monkeypatch.setattr(importlib.import_module(f'mmcv.ops.{name}'), 'ext_module', extension)


def compare(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    for gradient, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(gradient, other, rtol=0, atol=1e-4)


# Focal loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('with_weight', [False, True])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (1.5, 0.6)])
def test_focal_loss_and_its_gradient_are_those_of_mmdet_in_python(gamma, alpha, with_weight):
    random = np.random.RandomState(3)
    logits, target = cases.tensor(random, 50, 6, scale=3), torch.from_numpy(random.randint(0, 7, 50))
    weight = torch.from_numpy(random.uniform(0.5, 1.5, 6)).float() if with_weight else None
    assert 6 in target  # background, which has no weight of its own

    def by_mmdet(values):
        one_hot = F.one_hot(target, 7)[:, :6].float()
        loss = py_sigmoid_focal_loss(values, one_hot, gamma=gamma, alpha=alpha, reduction='none')
        return loss if weight is None else loss * torch.cat([weight, torch.ones(1)])[target][:, None]

    by_mmcv = importlib.import_module('mmcv.ops.focal_loss').sigmoid_focal_loss
    compare(cases.run(lambda values: by_mmcv(values, target, gamma, alpha, weight, 'none'), logits),
            cases.run(by_mmdet, logits))


def test_focal_loss_of_extreme_logits_is_finite():
    logits, losses, gradient = torch.tensor([[-200.0, 200.0]]), torch.empty(1, 2), torch.empty(1, 2)
    arguments = (torch.tensor([0]), torch.empty(0))
    extension.sigmoid_focal_loss_forward(logits, *arguments, losses, gamma=2.0, alpha=0.25)
    extension.sigmoid_focal_loss_backward(logits, *arguments, gradient, gamma=2.0, alpha=0.25)
    least = math.log(torch.finfo(torch.float32).tiny)  # where the logarithm of a probability stops
    torch.testing.assert_close(losses, torch.tensor([[-0.25 * least, -0.75 * least]]))
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, 0.75]]))


# Deformable attention -------------------------------------------------------------------------------------------------


def attention_inputs(dtype=torch.float32):
    random, shapes = np.random.RandomState(5), torch.tensor([[6, 5], [3, 4], [1, 2]])
    value = cases.tensor(random, 2, 44, 2, 4)
    locations = torch.from_numpy(random.uniform(-0.3, 1.3, (2, 7, 2, 3, 2, 2)))
    weights = cases.tensor(random, 2, 7, 2, 6).softmax(-1).view(2, 7, 2, 3, 2)
    return shapes, [tensor.to(dtype) for tensor in (value, locations, weights)]


def test_deformable_attention_and_its_gradients_are_those_of_mmcv_in_python():
    shapes, inputs = attention_inputs()
    starts = torch.tensor([0, 30, 42])
    compare(cases.run(lambda value, *rest: MultiScaleDeformableAttnFunction.apply(value, shapes, starts, *rest, 64),
                      *inputs),
            cases.run(lambda value, *rest: multi_scale_deformable_attn_pytorch(value, shapes, *rest), *inputs))


# RoI pooling ----------------------------------------------------------------------------------------------------------


def roi_pool_by_loops(features, boxes, size, scale):
    """Girshick 2015, Sec. 2.1, box by box and bin by bin."""
    _, channels, height, width = features.shape
    output = features.new_zeros(len(boxes), channels, *size)
    for number, (image, x1, y1, x2, y2) in enumerate(boxes.tolist()):
        x, y, w, h = x1 * scale, y1 * scale, (x2 + 1 - x1) * scale, (y2 + 1 - y1) * scale
        if w <= 0 or h <= 0:
            continue
        for row in range(size[0]):
            for column in range(size[1]):
                top, bottom = math.floor(y + row * h / size[0]), math.ceil(y + (row + 1) * h / size[0])
                left, right = math.floor(x + column * w / size[1]), math.ceil(x + (column + 1) * w / size[1])
                cells = features[int(image), :, max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
                if cells.numel():
                    output[number, :, row, column] = cells.flatten(1).max(1)[0]
    return output


def test_roi_pooling_and_its_gradient_are_those_of_loops_over_bins():
    random = np.random.RandomState(11)
    features, boxes = cases.tensor(random, 2, 3, 12, 15), cases.rois(random, 60)
    boxes[:, 1:] = boxes[:, 1:].round() + 0.25  # no bin ends on a cell's edge, where float32 and float64 may differ
    boxes[7, 3] = boxes[7, 1] - 5  # ends before it starts
    size, scale = (3, 2), 0.125
    roi_pool = importlib.import_module('mmcv.ops.roi_pool').roi_pool
    compare(cases.run(lambda values: roi_pool(values, boxes, size, scale), features),
            cases.run(lambda values: roi_pool_by_loops(values, boxes, size, scale), features))


@pytest.mark.parametrize('name', ['roi_pool', 'roi_align'])
def test_no_boxes_give_no_features_and_a_gradient_of_zeros(name):
    pool = getattr(importlib.import_module(f'mmcv.ops.{name}'), name)
    output, gradient = cases.run(lambda values: pool(values, torch.zeros(0, 5), (2, 2)), torch.ones(1, 3, 4, 4))
    assert output.shape == (0, 3, 2, 2) and not gradient.any()


# Memory, derivatives and layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', cases.ROI_ALIGN_CASES)
def test_roi_align_in_small_parts_is_the_same(case):
    whole = cases.roi_align(*case)
    with mock.patch.object(importlib.import_module('mmcv_stand_in.kernels.roi_samples'), 'PAIRS', 1):
        compare(cases.roi_align(*case), whole)


def test_roi_pooling_in_small_parts_is_the_same():
    random = np.random.RandomState(11)
    features, boxes = cases.tensor(random, 2, 3, 12, 15), cases.rois(random)
    pool = importlib.import_module('mmcv.ops.roi_pool').roi_pool
    whole = pool(features, boxes, (3, 2), 0.125)
    with mock.patch.object(importlib.import_module('mmcv_stand_in.kernels.roi_pool'), 'VALUES', 1):
        torch.testing.assert_close(pool(features, boxes, (3, 2), 0.125), whole, rtol=0, atol=0)


@pytest.mark.parametrize('block', [1, 3, 1000])
def test_nms_in_blocks_of_any_size_is_the_same(monkeypatch, block):
    whole = list(cases.nms_indices(step=20))
    monkeypatch.setattr(importlib.import_module('mmcv_stand_in.kernels.nms'), 'BLOCK', block)
    for found, expected in zip(cases.nms_indices(step=20), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_gradients_are_derivatives():
    """By differences, in float64: for inputs between cells, where there is a derivative."""
    random = np.random.RandomState(2)
    images, boxes = cases.tensor(random, 2, 2, 6, 5).double(), cases.rois(random, 8).double()
    offset, mask = cases.tensor(random, 2, 24, 6, 4).double(), cases.tensor(random, 2, 12, 6, 4).double()
    weight, bias = cases.tensor(random, 4, 1, 3, 2).double(), cases.tensor(random, 4).double()
    shapes, attention = attention_inputs(torch.float64)
    operator = {name: importlib.import_module(f'mmcv.ops.{name}') for name in PARTS}
    settings = ((1, 1), (1, 0), (1, 1), 2, 2)
    checks = [(lambda x: operator['roi_align'].roi_align(x, boxes, (3, 2), 0.05, 0, 'avg'), (images,)),
              (lambda x: operator['roi_align'].roi_align(x, boxes, (3, 2), 0.05, 2, 'max'), (images,))]
    checks += [(lambda *x: operator['deform_conv'].deform_conv2d(*x, *settings), (images, offset, weight)),
               (lambda *x: operator['modulated_deform_conv'].modulated_deform_conv2d(*x, *settings),
                (images, offset, mask, weight, bias)),
               (lambda x, *rest: MultiScaleDeformableAttnFunction.apply(x, shapes, torch.tensor([0, 30, 42]), *rest, 1),
                attention)]
    for function, inputs in checks:
        assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in inputs], fast_mode=True)


def test_offsets_and_masks_of_a_larger_map_are_read_one_after_the_other():
    """As compiled mmcv 2.1.0 does, which looks at no shape; DyHead relies on it."""
    random = np.random.RandomState(4)
    images, weight = cases.tensor(random, 2, 2, 6, 5), cases.tensor(random, 4, 2, 3, 3)
    offset, mask = cases.tensor(random, 2, 18, 12, 10), cases.tensor(random, 2, 9, 12, 10)
    convolve = importlib.import_module('mmcv.ops.modulated_deform_conv').modulated_deform_conv2d

    def run(offset, mask):
        return cases.run(lambda *values: convolve(values[0], *values[1:], weight, None, 1, 1, 1, 1, 1), images, offset,
                         mask)

    first = [values.flatten(1)[:, :values.size(1) * 30].reshape(2, -1, 6, 5) for values in (offset, mask)]
    found, expected = list(run(offset, mask)), list(run(*first))
    compare(found[:2], expected[:2])  # the output, and the gradient of the images
    for ours, theirs in zip(found[2:], expected[2:], strict=True):
        flat, theirs = ours.reshape(2, -1), theirs.reshape(2, -1)
        np.testing.assert_array_equal(flat[:, :theirs.shape[1]], theirs)
        assert theirs.any() and not flat[:, theirs.shape[1]:].any()
    with pytest.raises(RuntimeError, match=r'are too few for an output of \(6, 5\)'):
        convolve(images, offset[..., :2], mask, weight, None, 1, 1, 1, 1, 1)


def test_channels_last_features_give_the_same():
    random = np.random.RandomState(11)
    features, boxes = cases.tensor(random, 2, 3, 12, 15), cases.rois(random)
    align = importlib.import_module('mmcv.ops.roi_align').roi_align
    for mode in ('avg', 'max'):
        plain, other = (cases.run(lambda values: align(values, boxes, (3, 2), 0.125, 2, mode), value)  # noqa: B023
                        for value in (features, features.contiguous(memory_format=torch.channels_last)))
        compare(other, plain)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_roi_align_of_a_box_that_is_not_finite_is_0_and_leaves_the_others_alone(value, aligned):
    align = importlib.import_module('mmcv.ops.roi_align').roi_align
    features = torch.rand(1, 2, 8, 8)
    rois = torch.tensor([[0, 1, 1, 5, 5], [0, 1, value, 5, 5.0]])
    found = align(features, rois, (3, 3), 1.0, 0, 'avg', aligned)
    assert torch.equal(found[0], align(features, rois[:1], (3, 3), 1.0, 0, 'avg', aligned)[0])
    assert (found[1] == 0).all()


def test_aligned_roi_align_reads_a_box_that_ends_before_it_starts_from_its_end():
    """As mmcv's kernel for GPUs; untrained detectors give such boxes."""
    align = importlib.import_module('mmcv.ops.roi_align').roi_align
    features = cases.tensor(np.random.RandomState(1), 1, 2, 6, 6)
    box, mirrored = torch.tensor([[0, 1, 1.5, 4, 5]]), torch.tensor([[0, 4, 1.5, 1, 5]])
    torch.testing.assert_close(align(features, mirrored, (2, 2), 1.0, 2), align(features, box, (2, 2), 1.0, 2).flip(-1))
    assert not align(features, mirrored, (2, 2), 1.0, 0).any()  # no samples, by the rule for their number


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_and_given_back_in_half(dtype):
    random = np.random.RandomState(11)
    features, boxes = cases.tensor(random, 2, 4, 12, 15).to(dtype), cases.rois(random).to(dtype)
    offset, weight = cases.tensor(random, 2, 18, 12, 15).to(dtype), cases.tensor(random, 4, 4, 3, 3).to(dtype)
    align = importlib.import_module('mmcv.ops.roi_align').roi_align
    convolve = importlib.import_module('mmcv.ops.deform_conv').deform_conv2d
    for function, inputs in ((lambda x: align(x, boxes.to(x.dtype), (3, 2), 0.125, 2), (features,)),
                             (lambda *x: convolve(*x, 1, 1), (features, offset, weight))):
        half, single = ([value.clone().requires_grad_() for value in map(cast, inputs)]
                        for cast in (lambda value: value, torch.Tensor.float))
        outputs = function(*half), function(*single)
        assert outputs[0].dtype == dtype
        torch.testing.assert_close(outputs[0], outputs[1].to(dtype))
        for output in outputs:
            output.sum().backward()
        for found, expected in zip(half, single, strict=True):
            torch.testing.assert_close(found.grad, expected.grad.to(dtype))


def test_deformable_convolution_is_not_lowered_by_autocast():
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = cases.deform_conv(1, cases.DEFORM_CONV_CASES[0], 1.5)
    compare(found, cases.deform_conv(1, cases.DEFORM_CONV_CASES[0], 1.5))
