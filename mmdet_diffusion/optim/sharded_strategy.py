"""Weights, gradients and optimiser states in shards over the processes (FSDP), for models that do not fit."""

import dataclasses

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.registry import STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy`` with its faults and two of torch's mended, so that it resumes to the bit.

    - mmengine hands torch the optimiser's states in an order of arguments that torch 2.1 gave up, and clips each
      process's gradients by the norm of its own shards.
    - torch keeps the states of weights in ``channels_last`` in the order of their memory and loads them in that of
      their indices.
    - On a CPU torch saves the last state of a weight under the names of all (as of torch 2.13).

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

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        # Features stay in channels_last where the model has it: a convolution takes the layout of its input too.
        return super()._wrap_model(model.to(memory_format=torch.contiguous_format))

    def optim_state_dict(self) -> dict:
        """The optimiser's states, as ``state_dict_cfg`` says; see mmengine's."""
        if self.model.compute_device.type != 'cpu':
            return super().optim_state_dict()
        # Offloading to a CPU, where the states are already, gives views of one buffer that all states pass through.
        copied = dataclasses.replace(self.optim_state_dict_config, offload_to_cpu=False)
        with FullyShardedDataParallel.state_dict_type(self.model, self.state_dict_type, self.state_dict_config, copied):
            return super().optim_state_dict()

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Give each process its part of the optimiser's states.

        Args:
            state_dict (dict): of the whole optimiser, as ``state_dict_cfg`` saves it.
        """
        states = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict)
        self.optim_wrapper.load_state_dict(states)
