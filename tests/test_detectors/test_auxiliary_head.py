"""A dense head that teaches the backbone: from which levels, and how much."""

import pytest
import torch

from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg

SHAPE = (64, 96)


def fcos(strides):
    ends = [0, *(8 * stride for stride in strides[:-1]), 1e8]
    return dict(type='FCOSHead', in_channels=16, feat_channels=16, stacked_convs=1, strides=strides,
                regress_ranges=tuple(zip(ends, ends[1:], strict=False)), norm_cfg=None)


def retinanet(strides):
    return dict(type='RetinaHead', in_channels=16, feat_channels=16, stacked_convs=1,
                anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=strides),
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                               sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False))


def detector(head, **cfg):
    return build_detector(small_model_cfg() | dict(auxiliary_head=head, **cfg))


def losses_of(model):
    generator = torch.Generator().manual_seed(0)
    samples = [data_sample(random_boxes(3, SHAPE, generator), torch.arange(3), SHAPE, pad_shape=SHAPE)
               for _ in range(2)]
    torch.manual_seed(0)
    return model.loss(torch.randn((2, 3, *SHAPE), generator=generator), samples)


@pytest.mark.parametrize('make', [fcos, retinanet])
@pytest.mark.parametrize('strides', [[4, 8, 16, 32], [8, 16, 32], [16], [4, 8]])
def test_the_head_learns_from_the_levels_whose_strides_it_has(make, strides):
    model = detector(make(strides))
    seen = []
    model.auxiliary_head.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    losses = losses_of(model)
    assert [SHAPE[0] // level.size(2) for level in seen] == strides
    sum(value if torch.is_tensor(value) else sum(value) for value in losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.auxiliary_head.parameters())


@pytest.mark.parametrize('strides', [[2, 4], [8, 32], [16, 8], [6, 12]])
def test_strides_that_the_pyramid_has_not_are_named_with_both_when_the_model_is_built(strides):
    with pytest.raises(ValueError, match='auxiliary_head.*FCOSHead.*featmap_strides') as raised:
        detector(fcos(strides))
    assert str(strides) in str(raised.value) and '[4, 8, 16, 32]' in str(raised.value)


def test_a_level_past_those_of_the_neck_is_named_when_the_model_is_built(monkeypatch):
    refusal = r'auxiliary_head.*\[32, 64\].*4 levels'
    with pytest.raises(ValueError, match=refusal):
        detector(fcos([32, 64]))
    # Or at the first batch, where the trial run cannot tell.
    monkeypatch.setattr('mmdet_diffusion.detectors.diffusiondet.check_pyramid_at_build', lambda *_: None)
    model = detector(fcos([32, 64]))
    with pytest.raises(ValueError, match=refusal):
        losses_of(model)


@pytest.mark.parametrize('make', [fcos, retinanet])
def test_the_weight_is_of_the_auxiliary_losses_alone(make):
    once, twice = (losses_of(detector(make([8, 16]), auxiliary_weight=weight)) for weight in (1.0, 2.0))
    assert any(name.startswith('aux.') for name in once)
    for name, value in once.items():
        factor = 2 if name.startswith('aux.') else 1
        expected = [factor * part for part in value] if isinstance(value, list) else factor * value
        torch.testing.assert_close(twice[name], expected)


@pytest.mark.parametrize('weight', [0, -1.0, '2', float('inf'), True])
def test_a_weight_that_weighs_nothing_is_refused(weight):
    with pytest.raises(ValueError, match='auxiliary_weight'):
        detector(fcos([8]), auxiliary_weight=weight)


@pytest.mark.parametrize('make', [fcos, retinanet])
def test_under_autocast_its_layers_are_in_half_precision_and_its_losses_in_single(make):
    """mmcv's compiled focal loss refuses bfloat16."""
    model = detector(make([4, 8, 16, 32]))
    head, layers, losses = model.auxiliary_head, set(), set()
    last = head.conv_cls if make is fcos else head.retina_cls
    last.register_forward_hook(lambda module, args, output: layers.add(output.dtype))
    for loss in (head.loss_cls, head.loss_bbox):
        loss.register_forward_pre_hook(lambda module, args: losses.add(args[0].dtype))
    with torch.autocast('cpu', torch.bfloat16):
        losses_of(model)
    assert layers == {torch.bfloat16} and losses == {torch.float32}


def test_other_regress_ranges_than_strides_are_named_when_the_model_is_built():
    head = fcos([8, 16, 32]) | dict(regress_ranges=((-1, 24), (24, 48), (48, 96), (96, 1e8)))
    with pytest.raises(ValueError, match=r'FCOSHead.*\[8, 16, 32\].*4 regress_ranges'):
        detector(head)
