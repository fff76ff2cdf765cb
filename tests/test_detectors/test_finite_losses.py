"""A loss that is not finite stops the training before the weights are changed."""

import logging

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmdet_diffusion.detectors.finite_losses import MOST_LEFT_OUT, FiniteLosses
from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg


def samples(*names):
    boxes = random_boxes(2, (64, 96), torch.Generator().manual_seed(0))
    return [data_sample(boxes, torch.tensor([0, 1]), (64, 96), img_path=name) for name in names]


def train(model, images, *names):
    """One step of training as mmengine's loop does it."""
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    return model.train_step(dict(inputs=list(images), data_samples=samples(*names)), wrapper)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_a_loss_that_is_not_finite_names_itself_and_the_images(value):
    losses = dict(loss_cls=torch.tensor(1.0), loss_bbox=torch.tensor(value))
    with pytest.raises(FloatingPointError, match=rf'loss_bbox \({value}\); images of the batch: a.jpg, b.jpg\.'):
        FiniteLosses().check(losses, samples('a.jpg', 'b.jpg'))


def test_losses_of_each_level_are_looked_at_too():
    FiniteLosses().check(dict(loss_cls=[torch.ones(()), torch.ones(3)]), samples('a.jpg'))
    with pytest.raises(FloatingPointError, match='loss_cls .nan'):
        FiniteLosses().check(dict(loss_cls=[torch.ones(()), torch.tensor([1.0, float('nan')])]), samples('a.jpg'))


def test_a_loss_of_another_process_stops_this_one_too(monkeypatch):
    monkeypatch.setattr('mmdet_diffusion.detectors.finite_losses.all_reduce', lambda flag, op: flag.fill_(1))
    with pytest.raises(FloatingPointError, match='another process'):
        FiniteLosses().check(dict(loss_cls=torch.ones(())), samples('a.jpg'))


def test_a_model_that_diverges_stops_with_the_names_and_keeps_its_weights():
    model = build_detector(small_model_cfg()).train()
    images = torch.full((2, 3, 64, 96), 7.0)
    assert all(value.isfinite() for value in train(model, images, 'a.jpg', 'b.jpg').values())
    nn.init.constant_(model.neck.fpn_convs[0].conv.weight, float('inf'))  # as after a step too long
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(FloatingPointError, match='d0.loss_cls.*images of the batch: c.jpg, d.jpg'):
        train(model, images, 'c.jpg', 'd.jpg')
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_in_float16_the_step_is_left_to_the_loss_scaler_and_a_line_says_so(monkeypatch):
    losses = dict(loss_cls=torch.tensor(float('inf')))
    said = []
    monkeypatch.setattr('mmdet_diffusion.detectors.finite_losses.print_log', lambda *args: said.append(args))
    with torch.autocast('cpu', torch.float16):
        FiniteLosses().check(losses, samples('a.jpg'))
    (message, _, level), = said
    assert 'loss_cls (inf); images of the batch: a.jpg' in message and level == logging.WARNING
    with torch.autocast('cpu', torch.bfloat16), pytest.raises(FloatingPointError):  # which has no loss scaler
        FiniteLosses().check(losses, samples('a.jpg'))


def test_steps_that_the_loss_scaler_leaves_out_for_ever_stop_the_training():
    infinite, finite = (dict(loss_cls=torch.tensor(value)) for value in (float('inf'), 1.0))
    losses = FiniteLosses()
    with torch.autocast('cpu', torch.float16):
        for _ in range(MOST_LEFT_OUT - 1):
            losses.check(infinite, samples('a.jpg'))
        losses.check(finite, samples('a.jpg'))  # it recovered
        for _ in range(MOST_LEFT_OUT - 1):
            losses.check(infinite, samples('a.jpg'))
        with pytest.raises(FloatingPointError, match=f'in {MOST_LEFT_OUT} steps in a row.*range of float16'):
            losses.check(infinite, samples('a.jpg'))
