"""RoIAlign of a pyramid, against mmcv's operator and against plain loops."""

import copy
import math
from unittest import mock

import pytest
import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures.bbox import bbox2roi
from torch.utils._python_dispatch import TorchDispatchMode

import mmcv_stand_in
from mmdet_diffusion.ops import flatten_pyramid, roi_align_rows
from mmdet_diffusion.roi_extractors import (
    PyramidRoIExtractor,
    StockRoIExtractor,
    build_roi_extractor,
    pyramid_roi_extractor,
)
from mmdet_diffusion.roi_extractors.pyramid_roi_extractor import refuse_atomic_adds
from mmdet_diffusion.testing import random_boxes

IMG_SHAPE = (100, 132)
STRIDES = (4, 8, 16, 32, 64)
BOXES = dict(
    inside=[[10.3, 12.1, 50.7, 60.2], [3.0, 2.0, 20.5, 9.25]],
    no_area=[[30.0, 40.0, 30.0, 40.0], [30.5, 40.0, 70.0, 40.0], [30.0, 12.0, 30.0, 77.0], [0.0, 0.0, 0.0, 0.0]],
    larger_than_image=[[-50.3, -40.1, 190.7, 150.2], [-131.0, -99.0, 263.0, 199.0]],
    on_the_border=[[0.0, 0.0, 132.0, 100.0], [0.0, 0.0, 5.1, 5.2], [120.0, 90.0, 132.0, 100.0],
                   [131.0, 0.0, 132.0, 100.0]],
    partly_outside=[[-10.3, 20.0, 15.1, 51.0], [120.5, 80.25, 150.9, 130.1], [-3.1, -2.7, 3.3, 1.9]],
    outside=[[-80.0, -70.0, -20.0, -30.5], [300.0, 10.0, 340.0, 30.0], [140.0, 110.0, 150.0, 111.0]],
    far_away=[[1e5, 1e5, 1.001e5, 1.002e5], [-1e5, -1e5, 1e5, 1e5], [-1e5, 3.0, -9e4, 50.0], [2.0, 3.0, 1e5, 50.0]])


def make_features(num_levels, num_images=2, channels=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [tuple(math.ceil(side / stride) for side in IMG_SHAPE) for stride in STRIDES[:num_levels]]
    return tuple(torch.randn((num_images, channels, *size), generator=generator, dtype=torch.float64).to(dtype)
                 .requires_grad_() for size in sizes)


def ours(features, bboxes, levels, output_size=7):
    """Features of shape (B * N, C, P, P)."""
    rows = roi_align_rows(flatten_pyramid(features, STRIDES[:len(features)]), bboxes, levels, output_size, 2)
    return rows.transpose(1, 2).unflatten(-1, (output_size, output_size))


def by_mmcv(features, bboxes, levels, output_size=7):
    rois, levels = bbox2roi(list(bboxes)).to(features[0].dtype), levels.flatten()
    result = rois.new_zeros(len(rois), features[0].size(1), output_size, output_size)
    for level, feature in enumerate(features):
        of_level = (levels == level).nonzero()[:, 0]
        layer = RoIAlign(output_size, spatial_scale=1 / STRIDES[level], sampling_ratio=2, aligned=True)
        result = result.index_put((of_level, ), layer(feature, rois[of_level]))
    return result


def bilinear(feature, y, x):
    """One sample of a (C, H, W) map: zero beyond one cell outside, the border's value up to there."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(len(feature), dtype=feature.dtype)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right, down, across = min(top + 1, height - 1), min(left + 1, width - 1), y - top, x - left
    upper = feature[:, top, left] * (1 - across) + feature[:, top, right] * across
    lower = feature[:, bottom, left] * (1 - across) + feature[:, bottom, right] * across
    return upper * (1 - down) + lower * down


def by_loops(features, bboxes, levels, output_size=7):
    """Aligned RoIAlign with two samples a side, as the papers describe it."""
    result = []
    for image, (boxes, its_levels) in enumerate(zip(bboxes.tolist(), levels.tolist(), strict=True)):
        for box, level in zip(boxes, its_levels, strict=True):
            x1, y1, x2, y2 = (value / STRIDES[level] - 0.5 for value in box)
            bin_w, bin_h = (x2 - x1) / output_size, (y2 - y1) / output_size
            bins = [sum(bilinear(features[level][image], y1 + (row + dy) * bin_h, x1 + (column + dx) * bin_w)
                        for dy in (0.25, 0.75) for dx in (0.25, 0.75)) / 4
                    for row in range(output_size) for column in range(output_size)]
            result.append(torch.stack(bins, dim=-1).unflatten(-1, (output_size, output_size)))
    return torch.stack(result) + 0 * sum(feature.sum() for feature in features)


def random_levels(shape, num_levels, seed=0):
    return torch.randint(num_levels, shape, generator=torch.Generator().manual_seed(seed))


def assert_same_features_and_gradients(reference, features, bboxes, levels, tolerance):
    values = [align(features, bboxes, levels) for align in (ours, reference)]
    torch.testing.assert_close(*values, rtol=0, atol=tolerance)
    weight = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(1)).to(values[0])
    gradients = [torch.autograd.grad((value * weight).sum(), features, allow_unused=True) for value in values]
    for feature, mine, other in zip(features, *gradients, strict=True):
        other = torch.zeros_like(feature) if other is None else other
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize('num_levels', [1, 4, 5])
@pytest.mark.parametrize('kind', BOXES)
def test_features_and_gradients_equal_mmcv(kind, num_levels):
    boxes = torch.tensor(BOXES[kind]).double()
    bboxes = torch.stack([boxes, boxes.flip(0) + 0.3]).repeat(1, num_levels, 1)
    levels = torch.arange(num_levels).repeat_interleave(len(boxes)).expand(2, -1)
    features = make_features(num_levels)
    assert_same_features_and_gradients(by_mmcv, features, bboxes, levels, tolerance=1e-9)


@pytest.mark.parametrize('kind', BOXES)
def test_features_and_gradients_equal_plain_loops(kind):
    boxes = torch.tensor(BOXES[kind]).double()[None]
    features = make_features(3, num_images=1, channels=2)
    for level in range(3):
        levels = torch.full(boxes.shape[:2], level)
        assert_same_features_and_gradients(by_loops, features, boxes, levels, tolerance=1e-9)


def test_boxes_with_corners_exchanged_equal_plain_loops():
    boxes = torch.tensor([[[50.2, 60.3, 10.1, 12.4], [50.2, 12.4, 10.1, 60.3]]]).double()
    features = make_features(1, num_images=1, channels=2)
    assert_same_features_and_gradients(by_loops, features, boxes, torch.zeros(1, 2).long(), tolerance=1e-9)


def test_many_float32_boxes_of_four_images_equal_mmcv():
    generator = torch.Generator().manual_seed(0)
    bboxes = torch.stack([random_boxes(150, (180, 230), generator) - 40 for _ in range(4)])
    features = make_features(4, num_images=4, dtype=torch.float32)
    levels = random_levels((4, 150), 4)
    values = ours(features, bboxes, levels), by_mmcv(features, bboxes, levels)
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(*values, rtol=0, atol=1e-4)
    gradients = [torch.autograd.grad(value.square().sum(), features) for value in values]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (7, 1), (3, 2), (5, 9)])
def test_maps_of_odd_sizes_equal_mmcv(size):
    feature = torch.randn((2, 3, *size), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    boxes = random_boxes(30, (60, 60), generator).double().view(2, 15, 4) - 12.3
    assert_same_features_and_gradients(by_mmcv, (feature.requires_grad_(), ), boxes, torch.zeros(2, 15).long(), 1e-9)


@pytest.mark.parametrize('output_size', [1, 2, 7, 14])
def test_any_number_of_bins_equals_mmcv(output_size):
    bboxes = torch.tensor([BOXES['inside'], BOXES['partly_outside'][:2]]).double()
    features, levels = make_features(2), torch.tensor([[0, 1], [1, 0]])
    torch.testing.assert_close(ours(features, bboxes, levels, output_size),
                               by_mmcv(features, bboxes, levels, output_size), rtol=0, atol=1e-9)


def test_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn((2, 2, *size), dtype=torch.float64, generator=generator, requires_grad=True)
                for size in ((3, 4), (2, 2))]
    bboxes = torch.tensor([[[1.0, 2.0, 13.0, 9.0], [-3.0, -2.0, 7.0, 20.0]],
                           [[1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 16.0, 12.0]]]).double()
    levels = torch.tensor([[0, 1], [1, 0]])
    assert torch.autograd.gradcheck(lambda *levels_: ours(levels_, bboxes, levels, 2), features)


def test_one_image_of_a_batch_is_as_the_image_alone():
    features = make_features(4, num_images=3, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    bboxes = torch.stack([random_boxes(20, IMG_SHAPE, generator) for _ in range(3)])
    levels = random_levels((3, 20), 4)
    batch = ours(features, bboxes, levels).unflatten(0, (3, 20))
    for i in range(3):
        alone = ours(tuple(level[i:i + 1] for level in features), bboxes[i:i + 1], levels[i:i + 1])
        assert torch.equal(batch[i], alone)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_features_are_widened_where_gradients_are_computed(dtype):
    features = make_features(4, dtype=dtype)
    wide = tuple(level.detach().float().requires_grad_() for level in features)
    bboxes = torch.stack([random_boxes(10, IMG_SHAPE, torch.Generator().manual_seed(i)) for i in range(2)])
    levels = random_levels((2, 10), 4)
    values = ours(features, bboxes, levels), ours(wide, bboxes, levels)
    assert values[0].dtype == torch.float32
    assert torch.equal(*values)
    gradients = [torch.autograd.grad(value.sum(), levels_)
                 for value, levels_ in zip(values, (features, wide), strict=True)]
    for mine, other in zip(*gradients, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, other.to(dtype))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_features_stay_so_without_gradients_and_places_keep_their_digits(dtype):
    features = tuple(level.detach() for level in make_features(4, dtype=dtype))
    bboxes = torch.stack([random_boxes(10, IMG_SHAPE, torch.Generator().manual_seed(i)) for i in range(2)])
    levels = random_levels((2, 10), 4)
    exact = ours(tuple(level.float() for level in features), bboxes, levels)
    with torch.no_grad():
        values = ours(features, bboxes, levels)
    assert values.dtype == dtype
    # Each feature is the mean of samples of weight 1, whose weights and whose sum are rounded once.
    largest = max(float(level.abs().max()) for level in features)
    assert (values.float() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * largest


def test_no_boxes_give_no_features_and_zero_gradients():
    features = make_features(4)
    bboxes, levels = torch.zeros(2, 0, 4), torch.zeros(2, 0).long()
    result = roi_align_rows(flatten_pyramid(features, STRIDES[:4]), bboxes, levels, 7, 2)
    assert result.shape == (0, 49, 3)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(result.sum(), features))


def test_a_level_without_boxes_gets_a_zero_gradient():
    features = make_features(5)
    bboxes = torch.tensor([BOXES['inside'], BOXES['inside']])
    gradients = torch.autograd.grad(ours(features, bboxes, torch.full((2, 2), 2)).sum(), features)
    assert [bool(gradient.any()) for gradient in gradients] == [False, False, True, False, False]


@pytest.mark.parametrize('places', [[0], [1], [0, 1, 2, 3]])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_boxes_that_are_not_finite_leave_the_others_alone(value, places):
    bboxes = torch.tensor([BOXES['inside'], BOXES['inside']])
    levels = torch.tensor([[0, 1], [2, 3]])
    features = make_features(4, dtype=torch.float32)
    good = ours(features, bboxes, levels)
    broken = bboxes.clone()
    broken[0, 1, places] = value
    result = ours(features, broken, levels)
    assert torch.equal(result[[0, 2, 3]], good[[0, 2, 3]])


def test_no_gradient_reaches_the_boxes():
    bboxes = torch.tensor([BOXES['inside'], BOXES['inside']], requires_grad=True)
    result = ours(make_features(1, dtype=torch.float32), bboxes, torch.zeros(2, 2).long())
    assert torch.autograd.grad(result.sum(), bboxes, allow_unused=True) == (None, )


# Extractors -----------------------------------------------------------------------------------------------------------


def extractors(num_levels=4, channels=3):
    strides = STRIDES[:num_levels]
    stock = SingleRoIExtractor(dict(type='RoIAlign', output_size=7, sampling_ratio=2), channels, list(strides))
    return PyramidRoIExtractor(featmap_strides=strides, out_channels=channels), stock


def exact_levels(width, height, num_levels):
    """``floor(log2(sqrt(area) / 56))`` in integers."""
    return sum((width * height >= (56 * 2**level)**2).long() for level in range(1, num_levels))


@pytest.mark.parametrize('num_levels', [1, 4, 5])
def test_level_of_every_box_with_whole_sides_is_exact(num_levels):
    sides = torch.arange(1, 1001)
    width, height = torch.meshgrid(sides, sides, indexing='ij')
    bboxes = torch.stack([torch.zeros_like(width), torch.zeros_like(width), width, height], dim=-1).float()
    levels = extractors(num_levels)[0].map_roi_levels(bboxes)
    wrong = (levels != exact_levels(width, height, num_levels)).nonzero() + 1
    assert not len(wrong), f'{len(wrong)} boxes, such as {wrong[:3].tolist()} (width, height)'


@pytest.mark.parametrize('num_levels', [1, 4, 5])
def test_level_of_random_boxes_equals_mmdet(num_levels):
    pyramid, stock = extractors(num_levels)
    bboxes = random_boxes(5000, (1333, 1333), torch.Generator().manual_seed(0))
    octave = torch.log2((bboxes[:, 2:] - bboxes[:, :2]).double().prod(-1).sqrt() / 56)
    bboxes = bboxes[(octave - octave.round()).abs() > 1e-5]  # mmdet takes boxes 1e-6 below a boundary for above
    levels = pyramid.map_roi_levels(bboxes)
    assert torch.equal(levels, stock.map_roi_levels(bbox2roi([bboxes]), num_levels))
    assert levels.unique().tolist() == list(range(num_levels))


def test_boxes_without_area_go_to_the_finest_and_huge_ones_to_the_coarsest_level():
    bboxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 2.0, 2.0], [0.0, 3.0, 1e5, 3.0], [-1e5, -1e5, 1e5, 1e5],
                           [0.0, 0.0, 1e25, 1e25]])
    assert extractors()[0].map_roi_levels(bboxes).tolist() == [0, 0, 0, 3, 3]


@pytest.mark.parametrize('places', [[0], [1], [0, 1, 2, 3]])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_an_extractor_survives_boxes_that_are_not_finite(value, places):
    bboxes = torch.tensor([BOXES['inside'], BOXES['inside']])
    features = make_features(4, dtype=torch.float32)
    look_up = extractors()[0](features)
    broken = bboxes.clone()
    broken[1, 0, places] = value
    assert torch.equal(look_up(broken)[[0, 1, 3]], look_up(bboxes)[[0, 1, 3]])


def mixed_boxes():
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor([box for kind in BOXES.values() for box in kind])
    return torch.stack([torch.cat([special, random_boxes(40, (500, 700), generator) - 100]) for _ in range(2)])


@pytest.mark.parametrize('num_levels', [1, 4, 5])
def test_stock_and_pyramid_extractor_give_the_same_features_and_gradients(num_levels):
    features = make_features(num_levels, dtype=torch.float32)
    pyramid, stock = extractors(num_levels)
    values = [extractor(features)(mixed_boxes()) for extractor in (pyramid, StockRoIExtractor(stock))]
    assert values[0].shape == (2 * mixed_boxes().size(1), 49, 3)
    torch.testing.assert_close(*values, rtol=0, atol=1e-4)
    gradients = [torch.autograd.grad(value.square().sum(), features) for value in values]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('kind', ['pyramid', 'stock'])
def test_every_level_of_an_extractor_gets_a_gradient_when_all_boxes_are_small(kind):
    pyramid, stock = extractors()
    features = make_features(4, dtype=torch.float32)
    extractor = pyramid if kind == 'pyramid' else StockRoIExtractor(stock)
    small = torch.tensor([BOXES['inside'], BOXES['inside']])
    gradients = torch.autograd.grad(extractor(features)(small).sum(), features)
    assert [bool(gradient.any()) for gradient in gradients] == [True, False, False, False]


@pytest.mark.parametrize('kind', ['pyramid', 'stock'])
def test_levels_past_the_last_stride_are_left_out(kind):
    pyramid, stock = extractors(num_levels=3)
    extractor = pyramid if kind == 'pyramid' else StockRoIExtractor(stock)
    features = make_features(5, dtype=torch.float32)
    assert torch.equal(extractor(features)(mixed_boxes()), extractor(features[:3])(mixed_boxes()))


def test_a_stock_extractor_takes_boxes_with_corners_exchanged():
    bboxes = torch.tensor([[[50.2, 60.3, 10.1, 12.4], [10.0, 20.0, 30.0, 40.0]]])
    features = make_features(4, num_images=1, dtype=torch.float32)
    result = StockRoIExtractor(extractors()[1])(features)(bboxes)
    torch.testing.assert_close(result[1:], extractors()[0](features)(bboxes)[1:], rtol=0, atol=1e-4)


def test_both_kinds_are_built_from_configs_with_equal_properties():
    common = dict(out_channels=3, featmap_strides=[4, 8])
    layer = dict(type='RoIAlign', output_size=5, sampling_ratio=2)
    built = [build_roi_extractor(dict(type='PyramidRoIExtractor', output_size=5, **common)),
             build_roi_extractor(dict(type='SingleRoIExtractor', roi_layer=layer, **common))]
    assert [type(extractor) for extractor in built] == [PyramidRoIExtractor, StockRoIExtractor]
    for extractor in built:
        assert (extractor.num_inputs, extractor.out_channels, extractor.num_bins) == (2, 3, 25)


@pytest.mark.parametrize('wrong', [dict(featmap_strides=()), dict(featmap_strides=(8, 4)), dict(featmap_strides=(4, 4)),
                                   dict(featmap_strides=(0, 4)), dict(output_size=0), dict(sampling_ratio=0),
                                   dict(finest_scale=0), dict(output_size=7.5), dict(out_channels=0),
                                   dict(sampling_ratio='2'), dict(implementation='cuda')])
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PyramidRoIExtractor(**wrong)


@pytest.mark.parametrize(('implementation', 'device', 'chosen'), [
    ('auto', 'cpu', 'gathered'), ('auto', 'meta', 'gathered'), ('auto', 'cuda', 'mmcv'),
    ('gathered', 'cuda', 'gathered'), ('mmcv', 'cpu', 'mmcv')])
def test_implementation_is_that_of_the_config_or_fits_the_device(monkeypatch, implementation, device, chosen):
    monkeypatch.setattr(mmcv_stand_in, 'is_active', lambda: False)
    extractor = PyramidRoIExtractor(implementation=implementation)
    assert extractor.implementation_on(torch.device(device)) == chosen


@pytest.mark.parametrize(('implementation', 'chosen'), [('auto', 'gathered'), ('mmcv', 'mmcv')])
def test_a_stand_in_for_mmcvs_operator_is_taken_only_where_the_config_says_so(monkeypatch, implementation, chosen):
    monkeypatch.setattr(mmcv_stand_in, 'is_active', lambda: True)
    extractor = PyramidRoIExtractor(implementation=implementation)
    assert extractor.implementation_on(torch.device('cuda')) == chosen


def test_both_implementations_give_the_same_features_and_gradients():
    features = make_features(4, dtype=torch.float32)
    results = []
    for implementation in ('gathered', 'mmcv'):
        extractor = PyramidRoIExtractor(out_channels=3, implementation=implementation)
        value = extractor(features)(mixed_boxes())
        results.append([value, *torch.autograd.grad(value.square().sum(), features)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('implementation', ['gathered', 'mmcv'])
def test_the_layout_of_the_features_does_not_matter(implementation):
    features = make_features(4, channels=8, dtype=torch.float32)
    last = tuple(level.contiguous(memory_format=torch.channels_last) for level in features)
    look_up = PyramidRoIExtractor(out_channels=8, implementation=implementation)
    assert torch.equal(look_up(features)(mixed_boxes()), look_up(last)(mixed_boxes()))


def test_the_extractor_says_once_which_implementation_runs():
    extractor, features = PyramidRoIExtractor(out_channels=3), make_features(4, dtype=torch.float32)
    with mock.patch('mmdet_diffusion.roi_extractors.pyramid_roi_extractor.print_log') as told:
        extractor(features)
        extractor(features)
    assert told.call_count == 1
    assert "on cpu: gathered (implementation of the roi_extractor is 'auto')" in told.call_args.args[0]


def test_mmcvs_extractor_is_built_once_and_has_no_part_in_the_state(monkeypatch):
    built = []
    monkeypatch.setattr(pyramid_roi_extractor, 'SingleRoIExtractor',
                        lambda *args: built.append(None) or SingleRoIExtractor(*args))
    extractor, features = PyramidRoIExtractor(out_channels=3, implementation='mmcv'), make_features(4)
    assert not built
    for _ in range(3):
        extractor(features)
    assert len(built) == 1
    assert not extractor.state_dict() and list(extractor.modules()) == [extractor]
    copied = copy.deepcopy(extractor)
    assert torch.equal(copied(features)(mixed_boxes()), extractor(features)(mixed_boxes()))


# Determinism ----------------------------------------------------------------------------------------------------------

CUDA = torch.device('cuda')


@pytest.fixture
def compiled_operators(monkeypatch):
    monkeypatch.setattr(mmcv_stand_in, 'is_active', lambda: False)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_the_gathered_implementation_is_taken_where_torch_is_to_be_deterministic(compiled_operators, deterministic):
    extractor = PyramidRoIExtractor()
    assert extractor.implementation_on(CUDA) == 'gathered'
    torch.use_deterministic_algorithms(False)
    assert extractor.implementation_on(CUDA) == 'mmcv'


def test_mmcvs_operator_on_a_gpu_is_refused_where_torch_is_to_be_deterministic(compiled_operators, deterministic):
    with pytest.raises(RuntimeError, match="deterministic.*implementation='gathered'"):
        refuse_atomic_adds(CUDA)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match="deterministic.*implementation='gathered'"):
        refuse_atomic_adds(CUDA)


def test_mmcvs_operator_is_let_be_where_it_adds_in_order(compiled_operators, deterministic, monkeypatch):
    refuse_atomic_adds(torch.device('cpu'))
    with torch.no_grad():  # only its backward pass has no order
        refuse_atomic_adds(CUDA)
    monkeypatch.setattr(mmcv_stand_in, 'is_active', lambda: True)
    refuse_atomic_adds(CUDA)
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(mmcv_stand_in, 'is_active', lambda: False)
    refuse_atomic_adds(CUDA)


@pytest.mark.parametrize('extractor', [PyramidRoIExtractor(out_channels=3, implementation='mmcv'),
                                       StockRoIExtractor(extractors()[1])], ids=['pyramid', 'stock'])
def test_each_way_to_mmcvs_operator_asks_whether_it_may_run(monkeypatch, extractor):
    asked = []
    monkeypatch.setattr(pyramid_roi_extractor, 'refuse_atomic_adds', asked.append)
    features = make_features(4)
    extractor(features)
    assert asked == [features[0].device]


class Operators(TorchDispatchMode):
    """Names of what is dispatched."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.split('::')[1].strip('_'))
        return func(*args, **(kwargs or {}))


ADDED_IN_ANY_ORDER = {
    'index_add', 'scatter_add', 'scatter_reduce', 'index_reduce', 'index_put', 'index_put_impl', 'put',
    'embedding_bag_backward', 'embedding_bag_dense_backward', 'embedding_dense_backward'}


def test_gathered_features_and_gradients_use_no_operator_that_adds_in_any_order(deterministic):
    features = make_features(4, dtype=torch.float32)
    with Operators() as used:
        value = PyramidRoIExtractor(out_channels=3, implementation='gathered')(features)(mixed_boxes())
        torch.autograd.grad(value.square().sum(), features)
    assert 'embedding_bag_forward_only' in used.names or 'embedding_bag' in used.names
    assert not used.names & ADDED_IN_ANY_ORDER


class LookUp(torch.nn.Module):
    """What a whole head does with an extractor, small enough to compile."""

    def __init__(self):
        super().__init__()
        self.extractor = PyramidRoIExtractor(out_channels=3, implementation='gathered')

    def forward(self, features, bboxes):
        return self.extractor(features)(bboxes)


@pytest.mark.skipif(torch.__version__.startswith('2.1.'), reason='the compiler of torch 2.1 does not follow it')
def test_the_gathered_implementation_compiles_to_one_graph_with_the_same_features_and_gradients():
    features, bboxes = make_features(4, dtype=torch.float32), mixed_boxes()
    plain = LookUp()
    results = []
    for module in (plain, torch.compile(plain, backend='aot_eager', fullgraph=True)):
        value = module(features, bboxes)
        results.append([value, *torch.autograd.grad(value.square().sum(), features)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.skipif(torch.__version__.startswith('2.1.'), reason='the compiler of torch 2.1 does not follow it')
def test_the_gathered_implementation_can_be_exported():
    features, bboxes = tuple(level.detach() for level in make_features(4, dtype=torch.float32)), mixed_boxes()
    exported = torch.export.export(LookUp().eval(), (features, bboxes)).module()
    torch.testing.assert_close(exported(features, bboxes), LookUp()(features, bboxes))


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.skipif(
    torch.__version__.startswith('2.1.'), reason='torch 2.1 has no float16 autocast on a CPU'))])
def test_autocast_leaves_the_features_in_single_precision(dtype):
    features = make_features(4, dtype=torch.float32)
    with torch.autocast('cpu', dtype):
        value = LookUp()(features, mixed_boxes())
    assert torch.equal(value, LookUp()(features, mixed_boxes()))
    assert torch.autograd.grad(value.sum(), features)[0].dtype == torch.float32
