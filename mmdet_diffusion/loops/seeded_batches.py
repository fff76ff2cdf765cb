"""Training batches and draws as a function of seed, process and iteration: resuming has no past to restore."""

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset


def seed_draws(*key: int) -> None:
    """Seed the global generators of Python, numpy and torch (of every device) from whole numbers.

    Args:
        *key (int): at least 0; other numbers give unrelated draws, but for zeros at the end, which do not count.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


class SeededSamples(Dataset):
    """A data set whose draws for a sample do not depend on what was loaded before, or by which worker.

    Args:
        dataset (Dataset): takes an index; its transforms draw from the global generators.
        seed (int): of the training.
        rank (int): of the process.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._rank = rank

    def __getitem__(self, place: tuple[int, int, int]) -> object:
        """The sample for an iteration, a place in its batch and an index of the data set.

        Raises:
            RuntimeError: if it cannot be loaded; names the picture.
        """
        iteration, slot, index = place
        seed_draws(self._seed, self._rank, iteration, slot)
        try:
            return self._dataset[index]
        except Exception as error:  # whatever a decoder or transform raises: few of them name the file
            info = self._dataset.get_data_info(index) if hasattr(self._dataset, 'get_data_info') else {}
            path = info.get('img_path', 'without a path')
            raise RuntimeError(f'sample {index} of the training data, {path}, cannot be loaded '
                               f'({type(error).__name__}: {error}). Mend it, or take it out of the annotation file, '
                               'and go on from the last checkpoint with --resume') from error


class SeededBatches:
    """The batches of a data loader without end, from any iteration on; nothing is loaded for those before it.

    Order and draws follow from the seed, so that what comes at an iteration is the same whether the training was
    stopped before or not, with any number of workers.

    Args:
        dataloader (DataLoader): is not iterated itself. Its sampler may be endless or an epoch's.

    Raises:
        ValueError: if it has no sampler of batches, so that there is no order to follow, or no samples.
    """

    def __init__(self, dataloader: DataLoader) -> None:
        if isinstance(dataloader.dataset, IterableDataset) or dataloader.batch_sampler is None:
            raise ValueError(f'ResumableTrainLoop needs a data loader with indices in batches; that of '
                             f'{type(dataloader.dataset).__name__} has none. Set train_cfg.type=IterBasedTrainLoop')
        if not len(dataloader.dataset):  # an endless sampler would look for one for ever
            raise ValueError(f'{type(dataloader.dataset).__name__} ({getattr(dataloader.dataset, "ann_file", "")}) has '
                             'no image to train on; see its ann_file and filter_cfg')
        self._loader = dataloader
        self._batches: Iterator | None = None
        self._to_skip = 0

    @property
    def dataset(self) -> Dataset:
        """Of the data loader."""
        return self._loader.dataset

    def start(self, *, seed: int, rank: int, iteration: int, sets_order: bool) -> None:
        """Begin at an iteration; the next so many calls for a batch are mmengine's, to pass over what was trained.

        Args:
            seed (int): of the training, equal in all processes.
            rank (int): of this process.
            iteration (int): to begin at.
            sets_order (bool): whether the sampler's order follows from ``seed``, not from a seed of its own.
        """
        sampler = self._index_sampler()
        if sets_order and hasattr(sampler, 'seed'):
            sampler.seed = seed
        loader = self._loader
        self._to_skip = iteration
        self._batches = iter(DataLoader(
            SeededSamples(loader.dataset, seed, rank), batch_sampler=self._places(iteration),
            num_workers=loader.num_workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory,
            timeout=loader.timeout, worker_init_fn=loader.worker_init_fn, prefetch_factor=loader.prefetch_factor,
            multiprocessing_context=loader.multiprocessing_context))

    def __iter__(self) -> 'SeededBatches':
        return self

    def __next__(self) -> object:
        if self._to_skip:
            self._to_skip -= 1
            return None
        return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        """How onedl-mmengine passes over what was trained."""
        self._to_skip -= num_iters

    def _index_sampler(self) -> object:
        return getattr(self._loader.batch_sampler, 'sampler', None)

    def _places(self, iteration: int) -> Iterator[list[tuple[int, int, int]]]:
        """From an iteration on, for each: iteration, place in the batch and index of each sample."""
        for number, batch in enumerate(itertools.islice(self._index_batches(), iteration, None), start=iteration):
            yield [(number, slot, index) for slot, index in enumerate(batch)]

    def _index_batches(self) -> Iterator[Sequence[int]]:
        """The batch sampler's indices, epoch after epoch.

        Raises:
            ValueError: if an epoch has no batch.
        """
        for epoch in itertools.count():
            if hasattr(self._index_sampler(), 'set_epoch'):
                self._index_sampler().set_epoch(epoch)
            batches = iter(self._loader.batch_sampler)
            first = next(batches, None)
            if first is None:
                raise ValueError(f'{type(self.dataset).__name__} gives no batch for training: it has '
                                 f'{len(self.dataset)} samples')
            yield first
            yield from batches
