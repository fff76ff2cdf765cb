"""Class layers of a checkpoint with other classes."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import BaseLoop

from mmdet_diffusion.hooks import ClassTransferHook
from mmdet_diffusion.hooks.class_transfer_hook import transfer_rows
from mmdet_diffusion.testing import build_detector, small_model_cfg

GIVEN = ('person', 'traffic light', 'car', 'dog')
LAYERS = [f'bbox_head.stages.{stage}.fc_cls.{kind}' for stage in range(2) for kind in ('weight', 'bias')]


class Loop(BaseLoop):
    def __init__(self):
        pass

    def run(self):
        pass


def transfer(classes, caplog=None, *, given=GIVEN, prefix='', resume=False, loop=True, meta=True, **hook):
    """State of a checkpoint of four classes, and of the model of other classes before and after loading it."""
    model = build_detector(small_model_cfg(num_classes=len(classes)), seed=1)
    source = build_detector(small_model_cfg(num_classes=len(given)), seed=2)
    for name in LAYERS:
        torch.nn.init.normal_(source.get_parameter(name))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=given)) if meta else {},
                      state_dict={f'{prefix}{name}': value.clone() for name, value in source.state_dict().items()})
    dataset = SimpleNamespace(metainfo=dict(classes=classes))
    runner = SimpleNamespace(model=model, _resume=resume, _train_loop=Loop() if loop else dict(max_iters=1),
                             train_dataloader=SimpleNamespace(dataset=dataset), logger=logging.getLogger('test'))
    if caplog:
        caplog.set_level(logging.INFO)
    ClassTransferHook(**hook).after_load_checkpoint(runner, checkpoint)
    return source.state_dict(), before, {name.removeprefix(prefix): v for name, v in checkpoint['state_dict'].items()}


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_class_takes_the_rows_of_its_name_and_others_stay_as_initialised(prefix):
    source, before, after = transfer(('cup', 'Car', 'traffic_light'), prefix=prefix)
    for name in LAYERS:
        assert torch.equal(after[name][1:], source[name][[2, 1]])
        assert torch.equal(after[name][0], before[name][0])


def test_a_checkpoint_of_another_width_is_left_to_the_report_of_what_does_not_fit():
    weight, bias = LAYERS[:2]
    state = {weight: torch.ones(4, 32), bias: torch.ones(4)}
    assert transfer_rows(state, {weight: torch.zeros(4, 16), bias: torch.zeros(4)}, [0, None, 2, 3]) == 0
    assert state[weight].shape == (4, 32) and (state[bias] == 1).all()


def test_nothing_but_the_class_layers_changes():
    source, _, after = transfer(('cup', 'car'))
    assert {name for name, value in source.items() if not torch.equal(after[name], value)} == set(LAYERS)


def test_as_many_classes_of_other_names_do_not_take_the_checkpoint_s_by_place():
    _, before, after = transfer(('cup', 'pen', 'key', 'lid'))
    assert all(torch.equal(after[name], before[name]) for name in LAYERS)


def test_the_same_classes_in_another_order_are_put_in_theirs():
    source, _, after = transfer(('dog', 'car', 'traffic light', 'person'))
    assert all(torch.equal(after[name], source[name].flip(0)) for name in LAYERS)


def test_another_name_can_be_given():
    source, _, after = transfer(('automobile', 'cup'), source_names=dict(automobile='car'))
    assert all(torch.equal(after[name][0], source[name][2]) for name in LAYERS)


@pytest.mark.parametrize('names', [dict(cup='mug'), dict(pen='car')])
def test_a_name_that_is_in_neither_is_refused_with_those_there_are(names):
    with pytest.raises(ValueError, match='source_names.*(mug.*person, traffic light|pen.*cup, key)'):
        transfer(('cup', 'key'), source_names=names)


def test_the_log_says_which_classes_were_taken(caplog):
    transfer(('cup', 'car', 'dog'), caplog)
    assert '2 of 3 classes start from the class layers of the checkpoint: car, dog;' in caplog.text


def test_a_checkpoint_of_another_detector_is_not_said_to_be_taken_over(caplog):
    transfer(('cup', 'car', 'dog'), caplog, prefix='teacher.')
    assert 'no class layer of the checkpoint is one of the model' in caplog.text
    assert '3 classes start' not in caplog.text


@pytest.mark.parametrize('case', [dict(resume=True), dict(loop=False), dict(meta=False)], ids=str)
def test_resuming_testing_and_checkpoints_without_names_are_left_alone(case):
    source, _, after = transfer(('cup', 'car'), **case)
    assert all(torch.equal(after[name], source[name]) for name in LAYERS)
