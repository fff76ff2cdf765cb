"""What of a checkpoint has to be there, and as in the config, for a training to go on."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch import nn

from mmdet_diffusion.hooks.resume_check import refuse_partial_state


def training(max_iters=100, hooks=()):
    """A runner with a warm-up and a cosine, as the small configs have."""
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedulers = [LinearLR(optimizer, start_factor=0.01, begin=0, end=10, by_epoch=False),
                  CosineAnnealingLR(optimizer, T_max=max_iters - 10, begin=10, end=max_iters, by_epoch=False)]
    return SimpleNamespace(model=model, param_schedulers=schedulers, hooks=list(hooks), _resume=True)


def checkpoint(runner, **changes):
    return dict(meta=dict(epoch=0, iter=20), state_dict=runner.model.state_dict(), message_hub={}, optimizer={},
                param_schedulers=[one.state_dict() for one in runner.param_schedulers]) | changes


def test_a_whole_checkpoint_of_the_same_training_passes(caplog):
    refuse_partial_state(training(), checkpoint(training()))
    assert not caplog.records


@pytest.mark.parametrize('kept', [None, 0, 1])
def test_schedulers_that_are_missing_are_named(kept):
    whole = checkpoint(training())
    states = whole.pop('param_schedulers')
    if kept is not None:
        whole['param_schedulers'] = states[:kept]
    with pytest.raises(ValueError, match=f'it holds {kept or 0} param_schedulers, and the config has 2'):
        refuse_partial_state(training(), whole)


def test_schedulers_by_the_name_of_their_optimiser_are_counted_too():
    runner = training()
    content = checkpoint(runner, param_schedulers=dict(a=[runner.param_schedulers[0].state_dict()]))
    runner.param_schedulers = dict(a=runner.param_schedulers[:1], b=runner.param_schedulers[1:])
    with pytest.raises(ValueError, match='it holds 1 param_schedulers, and the config has 2'):
        refuse_partial_state(runner, content)


def test_another_length_is_said_since_the_rate_goes_on_as_it_was(monkeypatch):
    said = []
    monkeypatch.setattr('mmdet_diffusion.hooks.resume_check.print_log', lambda *args: said.append(args))
    refuse_partial_state(training(max_iters=300), checkpoint(training(max_iters=100)))
    (text, _, level), = said
    assert 'by the schedule of the checkpoint, with end 100' in text and 'with 300' in text and 'MAX_ITERS' in text
    assert level == logging.WARNING


def test_averaged_weights_are_not_trained_on():
    runner, averaged = training(), dict(ema_state_dict={})
    with pytest.raises(ValueError, match='its state_dict is not what was trained: resume with the EMAHook'):
        refuse_partial_state(runner, checkpoint(runner, **averaged))
    refuse_partial_state(training(hooks=[EMAHook()]), checkpoint(runner, **averaged))
