"""Checkpoints are there whole or not at all, and what is too old goes last."""

import errno
import os
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmdet_diffusion.hooks import atomic_checkpoint_hook
from mmdet_diffusion.hooks.atomic_checkpoint_hook import AtomicCheckpointHook, replace_file


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def train_step(self, data, optim_wrapper):
        loss = self.layer(data).sum()
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


def train(work_dir, max_iters=4, **hook):
    torch.manual_seed(0)
    runner = Runner(
        Model(), str(work_dir), train_dataloader=DataLoader(torch.randn(8, 2), batch_size=4),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), log_level='ERROR', experiment_name=work_dir.name,
        default_hooks=dict(checkpoint=AtomicCheckpointHook(by_epoch=False, interval=1, **hook)))
    runner.train()
    return runner


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth*'))


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path):
    train(tmp_path, max_keep_ckpts=2)
    assert names(tmp_path) == ['iter_3.pth', 'iter_4.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_4.pth')
    assert torch.load(tmp_path / 'iter_4.pth')['message_hub']['runtime_info']['keep_ckpt_ids'] == [3, 4]


def test_a_checkpoint_is_there_before_the_one_that_it_replaces_goes(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def recording(source, target):
        replace(source, target)
        seen.append((Path(target).name, names(tmp_path)))

    monkeypatch.setattr(atomic_checkpoint_hook.os, 'replace', recording)
    train(tmp_path, max_iters=2, max_keep_ckpts=1)
    assert seen == [('iter_1.pth', ['iter_1.pth']), ('last_checkpoint', ['iter_1.pth']),
                    ('iter_2.pth', ['iter_1.pth', 'iter_2.pth']), ('last_checkpoint', ['iter_1.pth', 'iter_2.pth'])]
    assert names(tmp_path) == ['iter_2.pth']


def test_what_a_killed_process_left_half_written_goes_when_training_begins(tmp_path):
    (tmp_path / 'iter_1.pth.part').touch()
    train(tmp_path, max_iters=2)
    assert names(tmp_path) == ['iter_1.pth', 'iter_2.pth']


def test_the_best_checkpoint_is_there_before_the_one_that_it_replaces_goes(tmp_path):
    runner = train(tmp_path, max_iters=2, save_best='acc', rule='greater')
    hook, = (hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook))
    hook.after_val_epoch(runner, dict(acc=0.5))
    runner.train_loop._iter += 1
    remove, found = hook.file_backend.remove, []
    hook.file_backend.remove = lambda path: (found.append(names(tmp_path)), remove(path))
    hook.after_val_epoch(runner, dict(acc=0.7))
    assert [[name for name in there if name.startswith('best')] for there in found] == [
        ['best_acc_iter_2.pth', 'best_acc_iter_3.pth']]
    assert [name for name in names(tmp_path) if name.startswith('best')] == ['best_acc_iter_3.pth']


@pytest.mark.parametrize('fails', ['write', 'fsync', 'replace'])
def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, fails):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, *args):
            Path(args[0]).touch()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        write = full

    (tmp_path / 'file').write_bytes(b'old')
    if fails == 'write':
        monkeypatch.setattr(atomic_checkpoint_hook, 'open', Full, raising=False)
    else:
        monkeypatch.setattr(atomic_checkpoint_hook.os, fails, full)
    with pytest.raises(OSError, match='file cannot be written .No space left on device.; what was saved'):
        replace_file(tmp_path / 'file', b'new')
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [('file', b'old')]
