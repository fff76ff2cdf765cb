"""Weights of a model, whatever it is wrapped in."""

from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the model has without the wrapper of a distributed training.

    Of a model in shards every process gets the whole, so that all of them have to call it.

    Args:
        model (nn.Module): of a runner.

    Returns:
        dict[str, Tensor]: by the names of a checkpoint.
    """
    if isinstance(model, FullyShardedDataParallel):
        # Of its inner module it would name one flat parameter, and mmengine's settings leave all but rank 0 without.
        whole = FullStateDictConfig(offload_to_cpu=model.compute_device.type != 'cpu', rank0_only=False)
        with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, whole):
            return model.state_dict()
    return (model.module if is_model_wrapper(model) else model).state_dict()
