"""Operators and waits of the head; numbers that do not depend on the machine."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from benchmark_models import batch, sampling
from benchmark_rows import Bench, steps_text
from torch import Tensor, nn

from mmdet_diffusion.operator_count import OperatorCount


def operator_counts(bench: Bench) -> list[dict]:
    """Operators and waits of sampling and of a training step's head.

    Sampling runs on the meta device, which stands for a GPU, with the gathered RoI features: mmcv's operator does not
    run there. Training needs values: on the CPU its reads include those
    of host tables, and its uploads cannot be seen.
    """
    features = tuple(level.to('meta') for level in bench.features)
    head = copy.deepcopy(bench.ours.bbox_head).to('meta')
    head.roi_extractor.implementation = 'gathered'
    found = []
    for steps in dict.fromkeys((1, bench.sizes.steps)):
        run = sampling(head, features, bench.sizes.boxes, steps, bench.sizes.image)
        found.append(_count(f'sampling with gathered RoI features, {steps_text(steps)}', run, 'meta'))
    data = bench.ours.data_preprocessor(
        batch(bench.sizes.training_objects, head.num_classes, bench.sizes.training_image), training=True)
    with torch.no_grad():
        features = bench.ours.extract_feat(data['inputs'])
    features = tuple(level.requires_grad_() for level in features)
    found.append(_count('head of a training step, forward + backward',
                        partial(_head_loss, bench.ours.bbox_head, features, data['data_samples']), bench.device.type))
    return found


def _count(what: str, run: Callable[[], object], device: str) -> dict:
    with OperatorCount(device) as count:
        run()
    return dict(what=what, operators=count.operators, reads=len(count.reads), uploads=len(count.uploads),
                places=count.places())


def _head_loss(head: nn.Module, features: tuple[Tensor, ...], samples: list) -> None:
    values = head.loss(features, samples)
    torch.stack(list(values.values())).sum().backward()
    head.zero_grad()
