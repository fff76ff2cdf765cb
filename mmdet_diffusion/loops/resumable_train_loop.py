"""Training by iterations that goes on after a stop as if there had been none."""

from collections.abc import Sequence

from mmdet.registry import LOOPS
from mmengine.dist import get_rank
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from .emptied_dataset import refuse_emptied_dataset
from .seeded_batches import SeededBatches, seed_draws

SEED = 'seed_of_draws'  # its name in mmengine's message hub


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop`` with draws that follow from the seed, the process and the iteration alone.

    That holds for the order of the samples (where ``sampler.seed`` is not set), what transforms draw for each, and
    noise and all else that the model draws in an iteration. The seed is in every checkpoint, so ``--resume`` goes on
    with the samples and the noise that would have come: mmengine repeats the noise from iteration 0 on, in another
    order of the samples. Nor does resuming load the samples that were trained on before, which takes mmengine as long
    as loading them did.

    Not restored is what a data set or transform keeps for later samples, such as the cache of ``CachedMosaic``.

    Args:
        runner (Runner): of the training.
        dataloader (DataLoader | dict): of the training data.
        max_iters (int): iterations in all.
        val_begin (int): first iteration after which to validate.
        val_interval (int): iterations from one validation to the next.
        dynamic_intervals (list[tuple[int, int]], optional): from an iteration on, another ``val_interval``.

    Raises:
        ValueError: if the data loader has no indices in batches, or a data set has no image left.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, max_iters: int, val_begin: int = 1,
                 val_interval: int = 1000, dynamic_intervals: list[tuple[int, int]] | None = None) -> None:
        self._diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
        # A data loader or sampler that was built elsewhere keeps its order, as does one with a seed of its own.
        sampler = dataloader['sampler'] if isinstance(dataloader, dict) else None
        self._sets_order = isinstance(sampler, dict) and sampler.get('seed') is None
        try:
            built = runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=self._diff_rank_seed)
        except ValueError as error:
            refuse_emptied_dataset(error)
            raise
        batches = SeededBatches(built)
        # Not the loader itself: of that mmengine would start the workers now, before the seed of a resumed training
        # is known.
        super().__init__(runner, batches, max_iters, val_begin, val_interval, dynamic_intervals)
        self.dataloader = built
        self.dataloader_iterator = batches

    def run(self) -> None:
        """Train from the iteration that was resumed, or from the first."""
        hub = self.runner.message_hub
        seed = self.runner.seed - (get_rank() if self._diff_rank_seed else 0)
        if self._iter > 0:
            seed = hub.runtime_info.get(SEED, seed)
        hub.update_info(SEED, seed)  # is in every checkpoint
        self._noise_key = seed, get_rank() if self._diff_rank_seed else 0
        self.dataloader_iterator.start(seed=seed, rank=get_rank(), iteration=self._iter, sets_order=self._sets_order)
        return super().run()

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Train on a batch; what is drawn for it follows from the seed and the iteration.

        Args:
            data_batch (Sequence[dict]): from the data loader.
        """
        seed, rank = self._noise_key
        seed_draws(seed, self._iter, rank)
        super().run_iter(data_batch)
