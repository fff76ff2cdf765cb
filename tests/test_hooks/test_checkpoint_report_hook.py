"""Checkpoints that fit a model in part."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from mmdet.models import SemiBaseDetector
from mmengine.model import BaseTTAModel, MMDistributedDataParallel
from torch import nn

from mmdet_diffusion.hooks import CheckpointReportHook


def report(checkpoint, caplog, wrap=None):
    """What the hook logs for a model of one layer and a batch norm."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    runner = SimpleNamespace(model=wrap(model) if wrap else model, logger=logging.getLogger('test'))
    with caplog.at_level(logging.WARNING):
        CheckpointReportHook().after_load_checkpoint(runner, checkpoint)
    return [record.getMessage() for record in caplog.records]


def fitting():
    names = ('weight', 'bias', 'running_mean', 'running_var')
    return {'0.weight': torch.zeros(3, 2), '0.bias': torch.zeros(3), **{f'1.{name}': torch.zeros(3) for name in names}}


def test_a_checkpoint_that_fits_is_not_mentioned(caplog):
    assert report(dict(state_dict=fitting()), caplog) == []


def test_names_of_distributed_training_fit(caplog):
    assert report({f'module.{name}': value for name, value in fitting().items()}, caplog) == []


@pytest.mark.parametrize('wrapper', [MMDistributedDataParallel, BaseTTAModel])
def test_a_model_in_a_wrapper_fits(caplog, monkeypatch, wrapper):
    monkeypatch.setattr(wrapper, '__init__',
                        lambda self, module: nn.Module.__init__(self) or self.add_module('module', module))
    monkeypatch.setattr(wrapper, '__abstractmethods__', frozenset(), raising=False)
    assert report(fitting(), caplog, wrapper) == []


def test_a_supervised_checkpoint_fits_a_teacher_and_student(caplog, monkeypatch):
    class Pair(SemiBaseDetector):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.student, self.teacher = module, copy.deepcopy(module)

    assert report(fitting(), caplog, Pair) == []
    assert report({f'{part}.{name}': value for part in ('student', 'teacher') for name, value in fitting().items()},
                  caplog, Pair) == []


def test_every_tensor_that_does_not_fit_is_named_with_the_reason(caplog):
    state = dict(fitting(), **{'0.weight': torch.zeros(4, 2), 'other.weight': torch.zeros(1)})
    del state['0.bias']
    assert report(dict(state_dict=state), caplog) == [
        '1 tensors of the checkpoint have another shape than in the model and are left out: 0.weight',
        '1 tensors of the checkpoint have no place in the model: other.weight',
        '1 tensors of the model are not in the checkpoint: 0.bias',
    ]


@pytest.mark.parametrize('checkpoint', [dict(model=dict(a=1)), dict(state_dict={'head.weight': torch.zeros(2)}),
                                        {'0.weight': torch.zeros(9)}, dict(state_dict={})])
def test_a_checkpoint_of_which_nothing_fits_is_refused_with_the_cure(caplog, checkpoint):
    with pytest.raises(ValueError, match='no tensor of the checkpoint fits the model.*diffusiondet_to_mmdet.py'):
        report(checkpoint, caplog)
