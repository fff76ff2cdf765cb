"""A training that is killed goes on, after ``--resume``, as the one that was never killed."""

import errno
import re
import shutil

import pytest
import torch
from interrupted_training import (
    assert_equal_runs,
    command,
    draw_shapes,
    record,
    run,
)

KILLED = -9


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp('data') / 'shapes')


@pytest.fixture(scope='module')
def whole(shapes, tmp_path_factory):
    """Folder of a training that nothing ended."""
    folder = tmp_path_factory.mktemp('whole')
    run(command(shapes, folder))
    return folder


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


