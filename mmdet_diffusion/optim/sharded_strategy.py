"""Weights, gradients and optimiser states in shards over the processes (FSDP), for models that do not fit."""

from mmengine._strategy import FSDPStrategy
from mmengine.registry import STRATEGIES
from torch.distributed.fsdp import FullyShardedDataParallel


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy``, resumable: it hands torch the optimiser's states in an order of arguments that torch
    2.1 gave up. Can go when mmengine calls it by names.

    Arguments are those of ``FSDPStrategy``.
    """

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Give each process its part of the optimiser's states.

        Args:
            state_dict (dict): of the whole optimiser, as ``state_dict_cfg`` saves it.
        """
        states = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict)
        self.optim_wrapper.load_state_dict(states)
