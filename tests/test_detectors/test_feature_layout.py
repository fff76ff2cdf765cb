"""From images to detections: the way RoI features are computed and the layout of memory change nothing."""

import pytest
import torch

import mmcv_stand_in
from mmdet_diffusion.testing import build_detector, data_sample, small_model_cfg

HEIGHT, WIDTH = 96, 128


def detections(roi_extractor, memory_format, *, channels_last=False):
    cfg = small_model_cfg()
    own = cfg['bbox_head']['roi_extractor']
    if roi_extractor == 'SingleRoIExtractor':
        layer = dict(type='RoIAlign', output_size=own.get('output_size', 7), sampling_ratio=2)
        cfg['bbox_head']['roi_extractor'] = dict(type='SingleRoIExtractor', roi_layer=layer,
                                                 out_channels=own['out_channels'],
                                                 featmap_strides=own['featmap_strides'])
    else:
        own['implementation'] = roi_extractor
    cfg['test_cfg'] = dict(seed=0, sampling_timesteps=2, nms=None)
    model = build_detector(cfg).eval().to(memory_format=memory_format)
    for stage in model.bbox_head.stages:  # scores far enough from each other to keep their order
        torch.nn.init.normal_(stage.fc_cls.weight, std=0.7, generator=torch.Generator().manual_seed(0))
    if channels_last:
        weights = model.state_dict()  # initial ones are drawn in the order of memory
        model = build_detector(cfg | dict(channels_last=True)).eval()
        model.load_state_dict(weights)
    images = torch.rand((2, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    samples = [data_sample(*nothing, (HEIGHT, WIDTH), img_id=img_id) for img_id in (1, 2)]
    images = images.contiguous(memory_format=memory_format)
    return [sample.pred_instances for sample in model.predict(images, samples, rescale=False)]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('roi_extractor', ['gathered', 'mmcv', 'SingleRoIExtractor'])
def test_detections_are_the_same(roi_extractor, memory_format):
    expected = detections('gathered', torch.contiguous_format)
    for found, wanted in zip(detections(roi_extractor, memory_format), expected, strict=True):
        torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.bboxes, wanted.bboxes, rtol=0, atol=1e-4 * WIDTH)
        assert torch.equal(found.labels, wanted.labels)


@pytest.mark.parametrize('roi_extractor', ['gathered', 'mmcv', 'SingleRoIExtractor'])
def test_detections_are_the_same_in_a_model_that_keeps_channels_last(roi_extractor):
    expected = detections('gathered', torch.contiguous_format)
    found = detections(roi_extractor, torch.contiguous_format, channels_last=True)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, wanted.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.bboxes, wanted.bboxes, rtol=0, atol=1e-4 * WIDTH)


@pytest.mark.parametrize('channels_last', [False, True])
def test_the_layout_reaches_weights_and_levels_and_survives_a_checkpoint(channels_last):
    plain = build_detector(small_model_cfg())
    model = build_detector(small_model_cfg() | dict(channels_last=channels_last)).eval()
    model.load_state_dict(plain.state_dict())
    weight = model.neck.lateral_convs[1].conv.weight  # 1x1: either layout in strides, but its memory is the same
    assert torch.equal(weight, plain.neck.lateral_convs[1].conv.weight)
    weight = model.neck.fpn_convs[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    level = model.extract_feat(torch.rand(2, 3, HEIGHT, WIDTH))[0]
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is channels_last
    assert level.is_contiguous(memory_format=torch.channels_last) is channels_last


def deformable_model_cfg(dcn):
    cfg = small_model_cfg()
    cfg.neck.in_channels = [4 * channels for channels in cfg.neck.in_channels]
    cfg.backbone.update(depth=50, dcn=dict(type=dcn, deform_groups=1, fallback_on_stride=False),
                        stage_with_dcn=(False, False, True, True))
    return cfg


@pytest.mark.parametrize(('dcn', 'operator'), [('DCN', 'DeformConv2dPack'), ('DCNv2', 'ModulatedDeformConv2dPack')])
def test_channels_last_is_refused_where_an_operator_of_mmcv_would_misread_it(monkeypatch, dcn, operator):
    monkeypatch.setattr(mmcv_stand_in, 'is_active', lambda: False)
    cfg = deformable_model_cfg(dcn)
    build_detector(cfg)
    with pytest.raises(ValueError, match=f'channels_last=True, but backbone.*{operator}.*leave out'):
        build_detector(cfg | dict(channels_last=True))


@pytest.mark.skipif(not mmcv_stand_in.is_active(), reason='compiled operators refuse the layout or misread it')
@pytest.mark.parametrize('dcn', ['DCN', 'DCNv2'])
def test_stand_ins_for_operators_of_mmcv_read_channels_last(dcn):
    images = torch.rand((2, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    plain, other = (build_detector(deformable_model_cfg(dcn) | dict(channels_last=channels_last)).eval()
                    for channels_last in (False, True))
    other.load_state_dict(plain.state_dict())  # random numbers fill memory in its order
    for expected, found in zip(plain.extract_feat(images), other.extract_feat(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
