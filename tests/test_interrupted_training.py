"""A training that is killed goes on, after ``--resume``, as the one that was never killed."""

import errno
import json
import re
import shutil
import socket
import subprocess

import pytest
import torch
from interrupted_training import (
    differing_state,
    distributed_options,
    draw_shapes,
    environment,
    record,
    run,
    shapes_options,
    train_command,
)

from mmdet_diffusion.testing import REPOSITORY

KILLED = -9
ITERATIONS = 7


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp('data') / 'shapes')


def command(shapes, folder, *extra, num_workers=0, launch=(), resume=False):
    options = [*shapes_options(shapes, num_workers=num_workers), f'train_cfg.max_iters={ITERATIONS}', *extra]
    if launch:
        options += distributed_options()
    return train_command(folder, *(['--resume'] if resume else []), '--cfg-options', *options, launch=launch)


@pytest.fixture(scope='module')
def whole(shapes, tmp_path_factory):
    """Folder of a training that nothing ended."""
    folder = tmp_path_factory.mktemp('whole')
    run(command(shapes, folder))
    return folder


def assert_equal_runs(folder, whole, ranks=(0, )):
    for rank in ranks:
        assert sorted(record(whole, rank)) == list(range(ITERATIONS))
        assert record(folder, rank) == record(whole, rank)
    last = f'iter_{ITERATIONS}.pth'
    assert not differing_state(folder / last, whole / last)


# One process ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('end_at', [
    dict(iteration=4),
    dict(file='iter_4.pth', time=1),  # with iter_2.pth there
    dict(file='last_checkpoint', time=2),
], ids=['iteration', 'checkpoint', 'last_checkpoint'])
def test_a_training_killed_there_and_resumed_equals_one_that_was_not(shapes, whole, tmp_path, end_at):
    run(command(shapes, tmp_path), KILLED, **end_at)
    printed = run(command(shapes, tmp_path, resume=True))
    assert f'iter: {4 if "iteration" in end_at else 2}' in printed.split('resumed epoch: 0, ')[1].splitlines()[0]
    assert_equal_runs(tmp_path, whole)
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.slow
def test_workers_load_what_they_would_have_loaded(shapes, whole, tmp_path):
    run(command(shapes, tmp_path, num_workers=2), KILLED, iteration=4)
    run(command(shapes, tmp_path, num_workers=1, resume=True))
    assert_equal_runs(tmp_path, whole)  # which had no worker


@pytest.mark.slow
def test_epochs_of_a_sampler_go_on(shapes, tmp_path):
    epochs = ['train_dataloader.sampler.type=DefaultSampler', 'train_dataloader.batch_size=4']  # 3 batches in each
    run(command(shapes, tmp_path / 'whole', *epochs))
    run(command(shapes, tmp_path / 'killed', *epochs), KILLED, iteration=4)
    run(command(shapes, tmp_path / 'killed', *epochs, resume=True))
    assert_equal_runs(tmp_path / 'killed', tmp_path / 'whole')
    orders = [[name for iteration in range(start, start + 3) for name, _ in
               record(tmp_path / 'whole')[iteration]['samples']] for start in (0, 3)]
    assert len(set(orders[0])) == 12 and sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


@pytest.mark.slow
def test_a_training_without_a_seed_goes_on_with_the_one_that_it_drew(shapes, tmp_path):
    seedless = ['randomness.seed=None', 'default_hooks.checkpoint.max_keep_ckpts=-1']
    run(command(shapes, tmp_path, *seedless))
    first = record(tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    (tmp_path / 'record_0.jsonl').unlink()
    run(command(shapes, tmp_path, *seedless, resume=True))
    again = record(tmp_path)
    assert sorted(again) == [4, 5, 6]
    assert again == {iteration: first[iteration] for iteration in again}


# Faults of disk and data ----------------------------------------------------------------------------------------------


def assert_ended_with_a_whole_checkpoint(folder, *iterations):
    checkpoint, = folder.glob('*.pth*')
    assert (folder / 'last_checkpoint').read_text() == str(checkpoint)
    assert torch.load(checkpoint)['meta']['iter'] in iterations


@pytest.mark.slow
def test_a_full_disk_ends_the_training_in_one_line_and_leaves_the_checkpoint_before(shapes, whole, tmp_path):
    printed = run(command(shapes, tmp_path), 1, file='iter_4.pth', time=1, errno=errno.ENOSPC)
    assert (f'{tmp_path}/iter_4.pth cannot be written (No space left on device); what was saved before is whole'
            in printed.splitlines()[-1])
    assert_ended_with_a_whole_checkpoint(tmp_path, 2)
    run(command(shapes, tmp_path, resume=True))
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('fault', ['folder', 'picture'])
def test_data_that_go_away_end_the_training_with_the_name_of_the_picture(shapes, whole, tmp_path, num_workers, fault):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    # Of a picture that comes next after the second iteration, the first half.
    picture = data / 'train' / record(whole)[4]['samples'][0][0]
    content = picture.read_bytes()
    (tmp_path / 'half').write_bytes(content[:len(content) // 2])
    replaced, other = (data / 'train', None) if fault == 'folder' else (picture, tmp_path / 'half')
    ahead = ['train_dataloader.prefetch_factor=1'] if num_workers else []
    line = command(data, tmp_path / 'work', *ahead, num_workers=num_workers)
    printed = run(line, 1, iteration=2, replace=[str(replaced), other and str(other)])
    named = r'/train/\d+.png' if fault == 'folder' else re.escape(str(picture))
    last_line = printed.strip().splitlines()[-1]
    assert re.search(f'sample \\d+ of the training data, .*{named}, cannot be loaded', last_line)
    assert_ended_with_a_whole_checkpoint(tmp_path / 'work', 2, 4)  # what a worker holds already is trained on
    replaced.with_name(replaced.name + '.away').replace(replaced)
    run(command(data, tmp_path / 'work', num_workers=num_workers, resume=True))
    assert_equal_runs(tmp_path / 'work', whole)


# Two processes --------------------------------------------------------------------------------------------------------

TWO = ('--standalone', '--nproc_per_node=2')


@pytest.fixture(scope='module')
def whole_of_two(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole_of_two')
    run(command(shapes, folder, launch=TWO))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('end_at', [dict(iteration=4, rank=1), dict(file='iter_4.pth', time=1)],
                         ids=['iteration', 'checkpoint'])
def test_two_processes_one_of_them_killed_and_resumed_equal_two_that_were_not(shapes, whole_of_two, tmp_path, end_at):
    run(command(shapes, tmp_path, launch=TWO), 1, **end_at)
    assert not (tmp_path / f'iter_{ITERATIONS}.pth').exists()
    run(command(shapes, tmp_path, launch=TWO, resume=True))
    assert_equal_runs(tmp_path, whole_of_two, ranks=(0, 1))
    one, other = (record(tmp_path, rank) for rank in (0, 1))
    assert all(one[iteration]['noise'] != other[iteration]['noise'] for iteration in one)


@pytest.mark.slow
def test_torchrun_restarts_a_training_whose_process_was_killed_and_it_ends_as_if_not(shapes, whole_of_two, tmp_path,
                                                                                     monkeypatch):
    # Else the restarted processes may find the addresses of those before them in torchrun's store.
    monkeypatch.setenv('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    printed = run(command(shapes, tmp_path, launch=(*TWO, '--max-restarts=1'), resume=True), iteration=4, rank=1)
    assert 'resumed epoch: 0, iter: 4' in printed
    assert_equal_runs(tmp_path, whole_of_two, ranks=(0, 1))


# Shards ---------------------------------------------------------------------------------------------------------------

FULL = 'strategy.state_dict_cfg'
SHARDED = [
    'runner_type=FlexibleRunner', 'strategy.type=ShardedStrategy',
    'strategy.model_wrapper.type=MMFullyShardedDataParallel', 'strategy.model_wrapper.device_id=cpu',
    f'{FULL}.state_dict_type=FULL_STATE_DICT', f'{FULL}.state_dict_config.type=FullStateDictConfig',
    f'{FULL}.state_dict_config.rank0_only=True', f'{FULL}.optim_state_dict_config.type=FullOptimStateDictConfig',
    f'{FULL}.optim_state_dict_config.rank0_only=True', 'model.auxiliary_head=None',
]


@pytest.mark.slow
def test_two_processes_with_sharded_weights_train_save_and_go_on_from_the_saved_weights(shapes, tmp_path):
    options = [*SHARDED, 'default_hooks.checkpoint.max_keep_ckpts=-1']
    run(command(shapes, tmp_path, *options, launch=TWO))
    first = [record(tmp_path, rank) for rank in (0, 1)]
    last = tmp_path / f'iter_{ITERATIONS}.pth'
    last.rename(tmp_path / 'first.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))  # as if it had been ended there
    for rank in (0, 1):
        (tmp_path / f'record_{rank}.jsonl').unlink()
    run(command(shapes, tmp_path, *options, launch=TWO, resume=True))
    for rank in (0, 1):
        again = record(tmp_path, rank)
        assert sorted(again) == [4, 5, 6]
        assert again[4] == first[rank][4]  # later ones are not equal: docs/scale.md
        assert all(again[iteration][key] == first[rank][iteration][key] for iteration in again
                   for key in ('noise', 'samples'))
    content = torch.load(last)
    assert {int(state['step']) for state in content['optimizer']['state'].values()} == {ITERATIONS}
    one = content['state_dict']
    assert 'bbox_head.stages.0.fc_cls.weight' in one  # named and shaped as in any other checkpoint
    assert one['bbox_head.stages.0.fc_cls.weight'].dim() == 2


# Two machines ---------------------------------------------------------------------------------------------------------

# Trains with the batches and draws of two processes, one after the other, as one: mean of the two gradients.
ONE_FOR_TWO = """
import json, sys
import mmdet_diffusion
from mmdet.registry import LOOPS
from mmdet_diffusion.launch import run_mmdet_tool
from mmdet_diffusion.loops import ResumableTrainLoop
from mmdet_diffusion.loops.seeded_batches import SeededBatches, seed_draws


@LOOPS.register_module()
class OneForTwoLoop(ResumableTrainLoop):
    def run(self):
        runner = self.runner
        streams = [self.stream(rank) for rank in (0, 1)]
        runner.model.train()
        with open(f'{runner.work_dir}/losses.jsonl', 'w') as file:
            for iteration in range(self._max_iters // 2):
                losses = []
                for rank in (0, 1):
                    batch = next(streams[rank])
                    seed_draws(runner.seed + rank, iteration)
                    losses.append(runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper))
                for scheduler in runner.param_schedulers:
                    scheduler.step()
                mean = {name: (losses[0][name] + losses[1][name]).item() / 2 for name in losses[0]}
                file.write(json.dumps(mean) + chr(10))

    def stream(self, rank):
        loader = self.runner.build_dataloader(self.runner.cfg.train_dataloader, seed=0)
        loader.batch_sampler.sampler.rank, loader.batch_sampler.sampler.world_size = rank, 2
        batches = SeededBatches(loader)
        batches.start(seed=self.runner.seed, rank=rank, iteration=0, sets_order=True)
        return batches


run_mmdet_tool('train.py')
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_agents_with_a_rendezvous_train_as_one_process_with_the_same_draws(shapes, tmp_path):
    # The auxiliary head's losses are divided by a mean over the processes; Adam's first steps are as large for a
    # gradient that is nothing but rounding as for any other.
    plain = ['model.auxiliary_head=None', 'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.fused=False',
             'optim_wrapper.optimizer.lr=0.2']
    nodes = ('--nnodes=2', '--nproc_per_node=1', '--rdzv_backend=c10d', f'--rdzv_endpoint=127.0.0.1:{free_port()}',
             '--rdzv_id=two', '--local_addr=127.0.0.1')
    line = command(shapes, tmp_path / 'two', *plain, launch=nodes)
    agents = [subprocess.Popen(line, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    printed = [agent.communicate(timeout=600)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed[0][-3000:] + printed[1][-3000:]

    line = command(shapes, tmp_path / 'one', *plain, 'train_cfg.type=OneForTwoLoop',
                   'optim_wrapper.accumulative_counts=2', f'train_cfg.max_iters={2 * ITERATIONS}')
    line.remove('default_hooks.record.type=RecordHook')
    (tmp_path / 'one' / 'train_recorded.py').write_text(ONE_FOR_TWO)
    run(line)
    one = [json.loads(line) for line in (tmp_path / 'one' / 'losses.jsonl').read_text().splitlines()]
    assert abs(one[-1]['loss'] - one[0]['loss']) > 0.1 * one[0]['loss']  # the weights have moved
    for rank in (0, 1):
        two = [entry['losses'] for _, entry in sorted(record(tmp_path / 'two', rank).items())]
        assert len(two) == len(one) == ITERATIONS
        for iteration, (expected, found) in enumerate(zip(one, two, strict=True)):
            assert found == pytest.approx(expected, rel=1e-4), iteration
