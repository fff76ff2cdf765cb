"""Batches and draws of an iteration do not depend on where the training began, on workers or on other processes."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from mmdet_diffusion.loops import ResumableTrainLoop
from mmdet_diffusion.loops.seeded_batches import SeededBatches, seed_draws


class Drawing(Dataset):
    """Ten samples, each with what a transform could draw."""

    def __init__(self, size=10):
        self.size = size
        self.loaded = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.loaded += 1
        return dict(index=index, draws=(random.random(), np.random.rand(), torch.rand(()).item()))


def batches(*, iteration=0, seed=3, rank=0, num_workers=0, sampler=InfiniteSampler, sets_order=True, dataset=None,
            sampler_seed=0):
    dataset = dataset or Drawing()
    order = BatchSampler(sampler(dataset, seed=sampler_seed), batch_size=3, drop_last=False)
    loader = DataLoader(dataset, batch_sampler=order, num_workers=num_workers, collate_fn=pseudo_collate)
    found = SeededBatches(loader)
    found.start(seed=seed, rank=rank, iteration=iteration, sets_order=sets_order)
    return found


@pytest.mark.parametrize(('sampler', 'sets_order'), [
    (dict(type='InfiniteSampler'), True), (dict(type='InfiniteSampler', seed=3), False), ('built', False)])
def test_a_sampler_with_an_order_of_its_own_keeps_it(tmp_path, sampler, sets_order):
    runner = Runner(nn.Linear(1, 1), str(tmp_path), experiment_name=tmp_path.name, cfg=dict(randomness=dict(seed=0)))
    dataset = Drawing()
    loader = dict(dataset=dataset, batch_size=2, num_workers=0,
                  sampler=DefaultSampler(dataset, seed=5) if sampler == 'built' else sampler)
    assert ResumableTrainLoop(runner, loader, max_iters=2)._sets_order == sets_order


def take(number, **options):
    stream = batches(**options)
    return [next(stream) for _ in range(number)]


@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_stream_from_an_iteration_on_gives_what_the_whole_one_gives_there(sampler, num_workers):
    whole = take(9, sampler=sampler)
    assert take(9, sampler=sampler, iteration=5, num_workers=num_workers)[:5] == [None] * 5  # mmengine asks for them
    assert take(9, sampler=sampler, iteration=5, num_workers=num_workers)[5:] == whole[5:]


def test_nothing_is_loaded_for_what_is_passed_over():
    dataset = Drawing()
    stream = batches(iteration=1000, dataset=dataset)
    assert [next(stream) for _ in range(1000)] == [None] * 1000 and dataset.loaded == 0
    assert len(next(stream)['index']) == 3 and dataset.loaded == 3


def test_a_sample_that_comes_again_is_drawn_for_anew():
    seen = [(index, draws) for batch in take(8, dataset=Drawing(3)) for index, draws in
            zip(batch['index'], zip(*batch['draws'], strict=True), strict=True)]
    assert len({index for index, _ in seen}) == 3
    assert len({draws for _, draws in seen}) == len(seen) == 24


def test_other_seeds_and_ranks_draw_otherwise():
    first = take(1)[0]['draws']
    assert take(1, seed=4)[0]['draws'] != first and take(1, rank=1)[0]['draws'] != first


def test_the_order_follows_from_the_seed_unless_the_sampler_has_its_own():
    order = [batch['index'] for batch in take(3)]
    assert [batch['index'] for batch in take(3, sampler_seed=9)] == order
    assert [batch['index'] for batch in take(3, sampler_seed=3, sets_order=False)] == order
    assert [batch['index'] for batch in take(3, sampler_seed=9, sets_order=False)] != order


def test_epochs_are_shuffled_differently_and_each_has_every_sample():
    stream = take(8, sampler=DefaultSampler)  # four batches in each of two
    epochs = [[index for batch in stream[start:start + 4] for index in batch['index']] for start in (0, 4)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_a_sample_that_cannot_be_loaded_is_named():
    class Broken(Drawing):
        def get_data_info(self, index):
            return dict(img_path=f'images/{index}.jpg')

        def __getitem__(self, index):
            raise OSError('image file is truncated')

    with pytest.raises(RuntimeError, match=r'sample (\d) of the training data, images/\1.jpg, cannot be loaded '
                                           r'\(OSError: image file is truncated\)'):
        next(batches(dataset=Broken()))


def test_data_without_samples_or_without_indices_are_refused():
    loader = DataLoader(Drawing(1), batch_size=1)
    loader.dataset.size = 0
    with pytest.raises(ValueError, match='Drawing .* has no image to train on'):
        SeededBatches(loader)

    class Endless(IterableDataset):
        def __iter__(self):
            yield 1

    with pytest.raises(ValueError, match='needs a data loader with indices in batches; that of Endless has none'):
        SeededBatches(DataLoader(Endless(), batch_size=1))


def test_all_generators_are_seeded_and_keys_do_not_collide():
    def draw(*key):
        seed_draws(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw(1, 2) == draw(1, 2)
    keys = [(1, 2), (2, 1), (1, 2, 0, 1), (1, 0, 2), (12, ), (1, 3)]
    for column in zip(*(draw(*key) for key in keys), strict=True):
        assert len(set(column)) == len(keys)
