"""What a detector costs: parameters, operations, time of an image, memory; measured, with what it was measured on."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from torch import nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from diffusiondet_runtime.memory import peak_bytes

from ..detectors.several_predictions import wait_for
from .learning_curves import training_log
from .shared_features import percentiles

WARM_UP = 2  # calls of each detector before the clock counts


def num_parameters(model: nn.Module) -> int:
    """Of the whole model, those too that training alone needs."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def num_flops(model: nn.Module, sample: dict) -> int:
    """Floating-point operations of one test image, two for a multiplication and addition, as torch's counter has them.

    It knows products, convolutions and attention, and of this package the gathered RoIAlign and oneDNN's product
    (``ops/flop_formulas.py``).
    """
    # The counter's hooks of gradients fail at views of a parameter, as Deformable DETR's queries are.
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learnt:
            parameter.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model.test_step(pseudo_collate([sample]))
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)
    return counter.get_total_flops()


def time_in_turns(predict: Mapping[str, Callable[[dict], object]], samples: Mapping[str, Sequence[dict]],
                  device: torch.device) -> dict[str, dict[str, float]]:
    """Time several detectors image by image, each image by all of them before the next one.

    Args:
        predict (Mapping[str, Callable[[dict], object]]): by name, what detects on a collated batch of one.
        samples (Mapping[str, Sequence[dict]]): the same images for each, loaded and prepared by its own pipeline.
        device (torch.device): waited for before the clock is read.

    Returns:
        dict[str, dict[str, float]]: seconds by name: ``first`` call, ``p50``, ``p90``, ``p99`` of the others without
        the :data:`WARM_UP` ones.
    """
    seconds = {name: [] for name in predict}
    for place in range(min(map(len, samples.values()))):
        names = list(predict) if place % 2 == 0 else list(predict)[::-1]
        for name in names:
            batch = pseudo_collate([samples[name][place]])
            wait_for(device)
            start = time.perf_counter()
            predict[name](batch)
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: dict(first=values[0], **percentiles(values[WARM_UP:] or values)) for name, values in seconds.items()}


def first_samples(dataset: Dataset, number: int) -> list[dict]:
    """Images of a data set through its pipeline."""
    return [dataset[place] for place in range(min(number, len(dataset)))]


def peak_memory(device: torch.device) -> float:
    """MiB: highest resident memory of this process so far, or on a GPU the highest size of all tensors."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_bytes() / 2**20


def training_seconds(checkpoint: Path) -> float | None:
    """Median seconds of a training iteration from the log beside a checkpoint; None without one."""
    log = training_log(checkpoint.parent)
    times = [entry['time'] for entry in log if 'time' in entry and 'loss' in entry]
    return percentiles(times)['p50'] if times else None


def machine(device: torch.device) -> str:
    """Processor or card, threads and versions."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    return (f'{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}')
