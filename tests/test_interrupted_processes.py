"""Trainings of several processes that are killed, restarted, in shards or on two machines."""

import copy
import json
import socket
import subprocess

import pytest
import torch
from interrupted_training import (
    ITERATIONS,
    assert_equal_runs,
    command,
    draw_shapes,
    environment,
    record,
    run,
)

from mmdet_diffusion.testing import REPOSITORY

KILLED = -9


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp('data') / 'shapes')


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


# The auxiliary head's losses are divided by a mean over the processes; Adam's first steps are as large for a gradient
# that is nothing but rounding as for any other.
SGD = ['model.auxiliary_head=None', 'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.2']

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
def test_two_processes_with_sharded_weights_go_on_from_a_checkpoint_as_if_they_had_not_stopped(shapes, tmp_path):
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
        assert all(again[iteration] == first[rank][iteration] for iteration in again)
    content, uninterrupted = torch.load(last), torch.load(tmp_path / 'first.pth')
    one = content['state_dict']
    assert all(torch.equal(value, one[name]) for name, value in uninterrupted['state_dict'].items())
    for name, states in uninterrupted['optimizer']['state'].items():
        assert int(states['step']) == ITERATIONS
        assert all(torch.equal(value, content['optimizer']['state'][name][key]) for key, value in states.items())
    states = uninterrupted['optimizer']['state']['bbox_head.stages.0.fc_cls.weight']
    assert not torch.equal(states['exp_avg'], states['exp_avg_sq'])
    assert 'bbox_head.stages.0.fc_cls.weight' in one  # named and shaped as in any other checkpoint
    assert one['bbox_head.stages.0.fc_cls.weight'].dim() == 2


@pytest.mark.slow
def test_sharded_weights_learn_as_whole_ones_with_gradients_clipped_by_the_norm_of_the_whole_model(shapes, tmp_path):
    clipped = [*SGD, 'optim_wrapper.clip_grad.max_norm=0.1']
    run(command(shapes, tmp_path / 'whole', *clipped, launch=TWO))
    run(command(shapes, tmp_path / 'shards', *SHARDED, *clipped, launch=TWO))
    for rank in (0, 1):
        whole, shards = (record(tmp_path / name, rank) for name in ('whole', 'shards'))
        for iteration in range(ITERATIONS):
            assert shards[iteration]['losses'] == pytest.approx(whole[iteration]['losses'], rel=1e-4), iteration
    whole, shards = (torch.load(tmp_path / name / f'iter_{ITERATIONS}.pth') for name in ('whole', 'shards'))
    for name, value in whole['state_dict'].items():
        torch.testing.assert_close(shards['state_dict'][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_sharded_weights_start_from_a_checkpoint_with_other_classes_by_their_names(shapes, tmp_path):
    options = [*SHARDED, 'train_cfg.max_iters=1', 'optim_wrapper.optimizer.lr=0.0',
               'default_hooks.class_transfer.type=ClassTransferHook', 'default_hooks.report.type=CheckpointReportHook']
    run(command(shapes, tmp_path / 'own', *options, launch=TWO))
    own = torch.load(tmp_path / 'own' / 'iter_1.pth')
    classes = own['meta']['dataset_meta']['classes']
    source = copy.deepcopy(own['state_dict'])
    layers = [name for name in source if 'fc_cls' in name]
    assert len(layers) == 4
    for name, value in source.items():
        if name in layers:  # one class more in front, the last one missing, the others the other way round
            source[name] = 0.1 * torch.rand(len(classes), *value.shape[1:])
        elif value.is_floating_point() and '.coder.' not in name:
            source[name] = value + 0.01
    torch.save(dict(state_dict=source, meta=dict(dataset_meta=dict(classes=('other', *classes[-2::-1])))),
               tmp_path / 'source.pth')
    printed = run(command(shapes, tmp_path / 'tuned', *options, f'load_from={tmp_path}/source.pth', launch=TWO))
    assert f'{len(classes) - 1} of {len(classes)} classes start from the class layers' in printed
    assert 'tensors of the' not in printed
    tuned = torch.load(tmp_path / 'tuned' / 'iter_1.pth')['state_dict']
    for name, value in tuned.items():
        if name in layers:
            torch.testing.assert_close(value, torch.cat([source[name][1:].flip(0), own['state_dict'][name][-1:]]))
        elif 'running' not in name and 'num_batches' not in name:
            torch.testing.assert_close(value, source[name])


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
        runner.message_hub.update_info_dict(dict(loop_stage='train', max_iters=self._max_iters // 2))
        with open(f'{runner.work_dir}/losses.jsonl', 'w') as file:
            for iteration in range(self._max_iters // 2):
                runner.message_hub.update_info('iter', iteration)  # by which boxes near the objects become fewer
                losses = []
                for rank in (0, 1):
                    batch = next(streams[rank])
                    seed_draws(runner.seed, iteration, rank)
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


TOLERANCE = 1e-4


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_agents_with_a_rendezvous_train_as_one_process_with_the_same_draws(shapes, tmp_path):
    nodes = ('--nnodes=2', '--nproc_per_node=1', '--rdzv_backend=c10d', f'--rdzv_endpoint=127.0.0.1:{free_port()}',
             '--rdzv_id=two', '--local_addr=127.0.0.1')

    def options(learning_rate):
        return [*SGD, f'optim_wrapper.optimizer.lr={learning_rate}']

    def losses_of_one_for_two(folder, learning_rate):
        line = command(shapes, folder, *options(learning_rate), 'train_cfg.type=OneForTwoLoop',
                       'optim_wrapper.accumulative_counts=2', f'train_cfg.max_iters={2 * ITERATIONS}')
        line.remove('default_hooks.record.type=RecordHook')
        (folder / 'train_recorded.py').write_text(ONE_FOR_TWO)
        run(line)
        return [json.loads(line) for line in (folder / 'losses.jsonl').read_text().splitlines()]

    line = command(shapes, tmp_path / 'two', *options(0.4), launch=nodes)
    agents = [subprocess.Popen(line, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    printed = [agent.communicate(timeout=600)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed[0][-3000:] + printed[1][-3000:]

    one = losses_of_one_for_two(tmp_path / 'one', 0.4)
    still = losses_of_one_for_two(tmp_path / 'still', 0)
    assert one[0] == pytest.approx(still[0], rel=1e-6)
    # The same with weights that stay: the steps change the losses by far more than the tolerance below.
    assert abs(one[-1]['loss'] - still[-1]['loss']) > 100 * TOLERANCE * still[-1]['loss']
    for rank in (0, 1):
        two = [entry['losses'] for _, entry in sorted(record(tmp_path / 'two', rank).items())]
        assert len(two) == len(one) == ITERATIONS
        for iteration, (expected, found) in enumerate(zip(one, two, strict=True)):
            assert found == pytest.approx(expected, rel=TOLERANCE), iteration
