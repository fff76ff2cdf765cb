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
