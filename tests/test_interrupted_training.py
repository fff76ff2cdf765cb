"""A training that is killed goes on, after ``--resume``, as the one that was never killed."""

import pytest
from interrupted_training import (
    differing_state,
    distributed_options,
    draw_shapes,
    record,
    run,
    shapes_options,
    train_command,
)

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
