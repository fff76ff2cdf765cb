"""Weights, gradients and optimiser states in shards over the processes (FSDP), for models that do not fit."""

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.registry import STRATEGIES
from torch.distributed.fsdp import FullyShardedDataParallel


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy`` with two faults mended.

    It hands torch the optimiser's states in an order of arguments that torch 2.1 gave up, and clips each process's
    gradients by the norm of its own shards.

    Arguments are those of ``FSDPStrategy``.
    """

    def prepare(self, *args, **kwargs):
        """As mmengine's; gradients are clipped by their norm over all shards."""
        prepared = super().prepare(*args, **kwargs)
        wrapper = getattr(self, 'optim_wrapper', None)
        if getattr(wrapper, 'clip_func', None) is torch.nn.utils.clip_grad_norm_:
            wrapper.clip_func = self._clip_grad_norm
        return prepared

    def _clip_grad_norm(self, _, max_norm: float, norm_type: float = 2.0, **__) -> torch.Tensor:
        return self.model.clip_grad_norm_(max_norm, norm_type)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Give each process its part of the optimiser's states.

        Args:
            state_dict (dict): of the whole optimiser, as ``state_dict_cfg`` saves it.
        """
        states = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict)
        self.optim_wrapper.load_state_dict(states)
