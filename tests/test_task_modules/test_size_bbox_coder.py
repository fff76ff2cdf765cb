"""Signal frame of a data set's sizes."""

import math
import warnings

import pytest
import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmengine.runner.checkpoint import load_state_dict

from mmdet_diffusion.task_modules import DiffusionBoxSampler, SizeBBoxCoder, pad_objects
from mmdet_diffusion.testing import build_detector, data_sample, small_model_cfg

SIZES = dict(log_scale=(-2.0, 0.5), log_aspect=(0.1, 0.25))
WHWH = torch.tensor([320.0, 240.0, 320.0, 240.0])


def signals(number=1000, seed=0):
    return torch.randn((number, 4), generator=torch.Generator().manual_seed(seed))


def test_boxes_come_back_from_the_signal():
    coder, signal = SizeBBoxCoder(**SIZES), signals().clamp(-4, 4)
    boxes = coder.decode(signal, WHWH)
    # Where the normal law is flat, the last digit of a centre is many of its quantile.
    torch.testing.assert_close(coder.encode(boxes, WHWH), signal, atol=2e-3, rtol=0)
    torch.testing.assert_close(coder.decode(coder.encode(boxes, WHWH), WHWH), boxes, atol=1e-3, rtol=0)


def test_noise_is_boxes_of_the_measured_sizes_evenly_over_the_image():
    boxes = bbox_xyxy_to_cxcywh(SizeBBoxCoder(**SIZES).decode(signals(20000), WHWH) / WHWH)
    log_width, log_height = boxes[:, 2:].log().unbind(-1)
    for values, (mean, deviation) in (((log_width + log_height) / 2, SIZES['log_scale']),
                                      ((log_width - log_height) / 2, SIZES['log_aspect'])):
        assert abs(values.mean() - mean) < 0.02 and abs(values.std() - deviation) < 0.02
    assert (boxes[:, :2].sort(0).values - torch.linspace(0, 1, 20000)[:, None]).abs().max() < 0.015


def test_a_box_of_mean_size_in_the_middle_is_the_origin():
    width, height = math.exp(-1.9) * 320, math.exp(-2.1) * 240
    box = torch.tensor([160 - width / 2, 120 - height / 2, 160 + width / 2, 120 + height / 2])
    torch.testing.assert_close(SizeBBoxCoder(**SIZES).encode(box, WHWH), torch.zeros(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize('box', [(0, 0, 0, 0), (-500, -500, -400, -400), (5, 5, 5, 90), (300, 5, 200, 90),
                                 (-1e6, -1e6, 1e6, 1e6), (320, 240, 320, 240)])
def test_any_box_has_a_finite_signal_and_comes_back_with_an_area(box):
    coder = SizeBBoxCoder(**SIZES)
    signal = coder.encode(torch.tensor(box, dtype=torch.float32), WHWH)
    assert signal.isfinite().all() and signal.abs().max() <= 4
    decoded = coder.decode(signal, WHWH)
    assert (decoded[2:] > decoded[:2]).all()


@pytest.mark.parametrize(('values', 'words'), [
    (dict(log_scale=(-2.0, 0.0)), ['log_scale', '0.0', 'measure_sizes']), (dict(log_aspect=(0.0, )), ['log_aspect']),
    (dict(log_aspect=(math.nan, 1.0)), ['log_aspect', 'nan']), (dict(log_scale=(0.0, -1.0)), ['log_scale', '-1.0'])])
def test_figures_that_no_data_set_has_are_refused(values, words):
    with pytest.raises(ValueError) as raised:
        SizeBBoxCoder(**(SIZES | values))
    assert all(word in str(raised.value) for word in words)


def sampler_cfg(**values):
    return dict(type='DiffusionBoxSampler', signal_scale=None, coder=dict(type='SizeBBoxCoder', **SIZES), **values)


def test_two_frames_at_once_are_refused():
    with pytest.raises(ValueError, match=r'signal_scale=2\.0.*SizeBBoxCoder'):
        DiffusionBoxSampler(signal_scale=2.0, coder=sampler_cfg()['coder'])


@pytest.mark.parametrize('step', [0, 400, 999])
@pytest.mark.parametrize('coder', [None, sampler_cfg()['coder']])
def test_start_padding_is_start_boxes_at_every_step(step, coder):
    sampler = DiffusionBoxSampler(num_train_timesteps=1000, coder=coder, padding='start')
    objects = pad_objects([data_sample(torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([0]), (240, 320))], 1)
    draws = sampler.draw_training(objects, 20001, torch.Generator().manual_seed(0))
    noisy = sampler.noisy_boxes(objects, draws._replace(timesteps=torch.tensor([step])))[0, 1:]
    start = sampler.decode(signals(20000, seed=1)[None], WHWH[None])[0]
    apart = (noisy.sort(0).values - start.sort(0).values).abs() / WHWH
    assert apart.mean() < 0.01


def test_a_model_with_the_frame_trains_and_detects():
    cfg = small_model_cfg()
    cfg.bbox_head.box_sampler = sampler_cfg(padding='start')
    model = build_detector(cfg)
    sample = data_sample(torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([0]), (64, 96))
    assert all(loss.isfinite() for loss in model.loss(torch.randn(1, 3, 64, 96), [sample]).values())
    assert model.eval().predict(torch.randn(1, 3, 64, 96), [sample], rescale=False)[0].pred_instances.bboxes.numel()


def test_a_checkpoint_of_other_sizes_is_refused_with_both():
    cfg = small_model_cfg()
    cfg.bbox_head.box_sampler = sampler_cfg()
    trained = build_detector(cfg).state_dict()
    cfg.bbox_head.box_sampler.coder.log_scale = (-3.0, 0.5)
    other = build_detector(cfg)
    with pytest.raises(ValueError, match=r'log_scale=\(-2\.0, 0\.5\).*-3\.0'):
        other.load_state_dict(trained)


def test_a_checkpoint_of_sizes_is_refused_by_the_frame_of_the_paper_and_the_other_way_warned_of():
    cfg = small_model_cfg()
    of_paper = build_detector(cfg)
    cfg.bbox_head.box_sampler = sampler_cfg()
    of_sizes = build_detector(cfg)
    with pytest.raises(ValueError, match=r'log_scale=\(-2.0, 0.5\), log_aspect=\(0.1, 0.25\)'):
        load_state_dict(of_paper, of_sizes.state_dict())
    with pytest.warns(UserWarning, match='trained in the frame of the paper'):
        load_state_dict(of_sizes, of_paper.state_dict())
    backbone = {name: value for name, value in of_paper.state_dict().items() if name.startswith('backbone.')}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_state_dict(of_sizes, backbone)  # of another detector
        load_state_dict(of_sizes, of_sizes.state_dict())


def test_the_frame_of_the_paper_keeps_nothing_in_a_checkpoint():
    assert not [name for name in build_detector(small_model_cfg()).state_dict() if 'box_sampler' in name]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_weights_keep_the_frame(dtype):
    sizes = dict(log_scale=(-1.727, 0.329), log_aspect=(-0.12, 0.095))
    trained = SizeBBoxCoder(**sizes).to(dtype).state_dict()
    coder = SizeBBoxCoder(**sizes)
    coder.load_state_dict(trained)
    assert coder.log_scale == sizes['log_scale']
    SizeBBoxCoder(**sizes).load_state_dict(coder.state_dict())  # and saved once more
    with pytest.raises(ValueError, match='log_aspect'):
        SizeBBoxCoder(**(sizes | dict(log_aspect=(-0.12, 0.105)))).load_state_dict(trained)
