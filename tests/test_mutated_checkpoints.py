"""Checkpoints with one thing changed at random: resumed as they stand, or refused in one line; no code in them runs.

``MUTATIONS=2000 pytest tests/test_mutated_annotations.py tests/test_mutated_checkpoints.py`` for more than a plain run.
"""

import copy
import os
import random
import re

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmdet_diffusion.hooks import AtomicCheckpointHook
from mmdet_diffusion.input_checks import refuse_missing_checkpoint, refuse_unreadable_checkpoint

NUMBER = int(os.environ.get('MUTATIONS', 200))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, inputs, mode=None):
        return dict(loss=self.norm(self.layer(inputs)).sum())

    def train_step(self, data, optim_wrapper):
        loss = self(data)['loss']
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
    """Of a training of three iterations, whose checkpoint is there."""
    torch.manual_seed(0)
    runner = Runner(
        Model(), str(tmp_path_factory.mktemp('work')), train_dataloader=DataLoader(torch.randn(8, 4), batch_size=4),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=3),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='MultiStepLR', by_epoch=False, milestones=[2]),
        default_hooks=dict(checkpoint=AtomicCheckpointHook(by_epoch=False, interval=3)), log_level='ERROR',
        experiment_name='mutated')
    runner.train()
    return runner


@pytest.fixture(scope='module')
def whole(runner):
    return os.path.join(runner.work_dir, 'iter_3.pth')


class Asks:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def values():
    code = 'touch code_ran'
    return [None, True, -1, 0, 10**9, float('nan'), '', 'a', '\n', [], {}, [1], dict(a=1), torch.zeros(0),
            torch.zeros(2, 2), torch.full((3, 4), float('nan')), 'import os; os.system("touch code_ran")',
            Asks(os.system, code), Asks(eval, '__import__("os").system("touch code_ran")'),
            Asks(exec, 'open("code_ran", "w")'), Asks(open, 'code_ran', 'w'),
            Asks(getattr, HistoryBuffer, '__globals__'), Asks(torch.load, 'code_ran')]


def places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutate_content(content, path, random_):
    content = copy.deepcopy(content)
    *steps, key = random_.choice(list(places(content)))
    owner = content
    for step in steps:
        owner = owner[step]
    action = random_.choice(['change', 'change', 'change', 'remove', 'rename', 'config'])
    if action == 'config':  # MMDetection 2 kept it there, and mmengine reads it by running it
        content['meta']['config'] = 'import os; os.system("touch code_ran")'
    elif action == 'remove':
        del owner[key]
    elif action == 'rename' and isinstance(owner, dict):
        owner[random_.choice(['x', 3, 'state_dict'])] = owner.pop(key)
    else:
        owner[key] = random_.choice(values())
    torch.save(content, path, _use_new_zipfile_serialization=random_.random() < 0.8)


def mutate_bytes(data, path, random_):
    data = bytearray(data)
    for _ in range(random_.choice([1, 1, 2, 20])):
        place = random_.randrange(len(data))
        action = random_.choice(['change', 'change', 'remove', 'insert', 'truncate', 'zero'])
        if action == 'change':
            data[place] ^= 1 << random_.randrange(8)
        elif action == 'insert':
            data[place:place] = random_.randbytes(random_.choice([1, 64]))
        elif action == 'zero':  # as a file system leaves it after a power failure
            data[place:place + 512] = bytes(len(data[place:place + 512]))
        else:
            del data[place:place + 1 if action == 'remove' else None]
        if not data:
            break
    path.write_bytes(data)


def resume(runner, path):
    """What ``--resume PATH`` does up to the first iteration; the line that it is refused with, or None."""
    runner._has_loaded, runner._resume, runner._load_from = False, True, str(path)
    try:
        refuse_missing_checkpoint(str(path), '--resume')
        try:
            runner.load_or_resume()
        except Exception as error:  # our programs then say this in its place
            refuse_unreadable_checkpoint(error, str(path))
            raise
    except SystemExit as refusal:
        return str(refusal)
    return None


def assert_state_of(runner, content):
    state = runner.model.state_dict()
    # mmengine does without the counter of batch norm, which nothing reads where its momentum is given.
    assert content['state_dict'].keys() | {'norm.num_batches_tracked'} == state.keys()
    for name, value in content['state_dict'].items():
        assert torch.equal(value.nan_to_num(), state[name].nan_to_num()), name
    assert (runner.iter, runner.epoch) == (content['meta']['iter'], content['meta']['epoch'])


def resume_all(runner, tmp_path, monkeypatch, mutate):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'changed.pth'
    counts = dict(resumed=0, refused=0)
    for seed in range(NUMBER):
        mutate(path, random.Random(seed))
        refusal = resume(runner, path)
        assert not (tmp_path / 'code_ran').exists(), f'mutation {seed} ran code'
        counts['refused' if refusal else 'resumed'] += 1
        if refusal:
            assert str(path) in refusal and len(refusal.splitlines()) == 1 and len(refusal) < 700, f'{seed}: {refusal}'
        else:
            yield torch.load(path)
    assert min(counts.values()) > 0, counts  # both happen


def test_a_checkpoint_with_another_content_is_resumed_as_it_stands_or_refused_in_one_line(runner, whole, tmp_path,
                                                                                          monkeypatch):
    content = torch.load(whole)
    for resumed in resume_all(runner, tmp_path, monkeypatch, lambda *args: mutate_content(content, *args)):
        assert_state_of(runner, resumed)


def test_a_checkpoint_with_damaged_bytes_is_refused_in_one_line_or_holds_what_was_written(runner, whole, tmp_path,
                                                                                          monkeypatch):
    content = torch.load(whole)
    with open(whole, 'rb') as file:
        data = file.read()
    for _ in resume_all(runner, tmp_path, monkeypatch, lambda *args: mutate_bytes(data, *args)):
        assert_state_of(runner, content)


@pytest.mark.parametrize(('change', 'said'), [
    (lambda content: content.pop('optimizer'), 'it holds no optimizer of a training'),
    (lambda content: content['meta'].pop('iter'), 'meta.iter must be a number of what was trained, got None'),
    (lambda content: content['state_dict'].pop('layer.bias'), '1 tensors of the model are not in the checkpoint'),
    (lambda content: content['state_dict'].update({'layer.bias': torch.zeros(5)}),
     '1 tensors of the checkpoint have another shape'),
], ids=['optimizer', 'iteration', 'weight', 'shape'])
def test_a_checkpoint_that_lacks_a_part_of_the_training_is_not_resumed_in_part(runner, whole, tmp_path, change, said):
    content = torch.load(whole)
    change(content)
    torch.save(content, tmp_path / 'part.pth')
    assert resume(runner, tmp_path / 'part.pth').startswith(f'{tmp_path}/part.pth cannot be read: {said}')


def test_a_whole_checkpoint_is_resumed(runner, whole):
    assert resume(runner, whole) is None
    assert_state_of(runner, torch.load(whole))


def test_a_config_in_a_checkpoint_is_not_run(runner, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(whole)
    content['meta']['config'] = 'import os; os.system("touch code_ran")'
    torch.save(content, 'config.pth')
    assert resume(runner, tmp_path / 'config.pth') is None
    assert not (tmp_path / 'code_ran').exists()


def test_a_weight_with_another_bit_is_noticed(runner, whole, tmp_path):
    weight = torch.load(whole)['state_dict']['layer.weight'].numpy().tobytes()
    with open(whole, 'rb') as file:
        data = bytearray(file.read())
    data[data.index(weight)] ^= 1
    (tmp_path / 'bit.pth').write_bytes(data)
    assert re.search(r'bit.pth \(--resume\) is a damaged checkpoint: its part .*/data/\d+ is not as it was written',
                     resume(runner, tmp_path / 'bit.pth'))
