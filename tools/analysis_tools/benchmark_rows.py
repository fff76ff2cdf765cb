"""Rows of the benchmark's table: each measures one thing and what it is compared with."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from benchmark_models import (
    Sizes,
    batch,
    build_model,
    matching_problem,
    object_boxes,
    object_counts,
    pyramid,
    training_step,
)
from benchmark_timing import Samples, interleave, paired_ratio
from matrix_products import record_products
from mmengine.config import Config
from torch import Tensor, nn

from mmdet_diffusion.operator_count import OperatorCount

MEMORY_SCRIPT = Path(__file__).with_name('training_memory.py')


class Target(NamedTuple):
    """What a ratio is held against.

    Attributes:
        least (float): what is asked for.
        aim (float): what is aimed at.
        at_most (bool): small ratios, ours over the reference, are wanted; else large ones, the reference over ours.
        percent (bool): shown as percentage.
    """

    least: float
    aim: float
    at_most: bool = False
    percent: bool = False

    def ratio(self, ours: Samples, reference: Samples) -> float:
        """Median of paired ratios, in the direction of the target."""
        return paired_ratio(ours, reference) if self.at_most else paired_ratio(reference, ours)

    def met(self, ratio: float) -> str:
        """``aim``, ``least`` or ``no``."""
        if self.at_most:
            return 'aim' if ratio < self.aim else 'least' if ratio <= self.least else 'no'
        return 'aim' if ratio >= self.aim else 'least' if ratio >= self.least else 'no'

    def text(self, value: float) -> str:
        """A ratio or bound."""
        return f'{value * 100:.3g} %' if self.percent else f'{value:.3g} x'


class Row(NamedTuple):
    """One comparison.

    Attributes:
        what (str): is measured.
        ours (Samples): of this package.
        against (str): name of the reference.
        reference (Samples): measured in turn with ours.
        target (Target): for the ratio of the two.
    """

    what: str
    ours: Samples
    against: str
    reference: Samples
    target: Target

    @property
    def ratio(self) -> float:
        """In the direction of the target."""
        return self.target.ratio(self.ours, self.reference)


class Bench:
    """What the rows share.

    Args:
        config (Config): of the model.
        config_path (str): its file, and ``cfg_options`` what is changed in it; for processes of their own.
        cfg_options (list[str]): in the form of the command line.
        device (torch.device): to measure on.
        sizes (Sizes): of the inputs.
        repetitions (int): of each time.
        memory_runs (int): processes per side for the peak of memory.
    """

    def __init__(self, *, config: Config, config_path: str, cfg_options: list[str], device: torch.device, sizes: Sizes,
                 repetitions: int, memory_runs: int) -> None:
        self.config, self.config_path, self.cfg_options = config, config_path, cfg_options
        self.device, self.sizes = device, sizes
        self.repetitions, self.memory_runs = repetitions, memory_runs

    @cached_property
    def ours(self) -> nn.Module:
        """The config's model."""
        return build_model(self.config, self.sizes.boxes, stock=False).to(self.device).eval()

    @cached_property
    def stock(self) -> nn.Module:
        """The same with mmdet's RoI extractor."""
        return build_model(self.config, self.sizes.boxes, stock=True).to(self.device).eval()

    @cached_property
    def features(self) -> tuple[Tensor, ...]:
        """Feature maps of one image."""
        return pyramid(self.ours.bbox_head, 1, self.sizes.image, self.device)

    def boxes(self) -> Tensor:
        """Boxes of the sizes of objects, shape (1, N, 4)."""
        return object_boxes(self.sizes.boxes, self.sizes.image, torch.Generator().manual_seed(5))[None].to(self.device)

    def time(self, *sides: Callable[[], object]) -> list[Samples]:
        """Seconds of each side, measured in turn."""
        return interleave(sides, self.repetitions, self.device)

    def sampling(self, model: nn.Module, steps: int) -> Callable[[], object]:
        """From features to what goes into NMS; every draw gives boxes of the sizes of objects."""
        return sampling(model.bbox_head, self.features, self.sizes.boxes, steps, self.sizes.image)

    @cached_property
    def training_times(self) -> dict[str, Samples]:
        """Training steps of both sides, and matching + losses of many images, in turn.

        On models of their own, which the optimiser changes.
        """
        steps = [training_step(build_model(self.config, self.sizes.boxes, stock=stock).to(self.device), self.config,
                               self.sizes) for stock in (False, True)]
        times = self.time(*steps, matching(self.ours.bbox_head, self.sizes, self.device))
        return dict(zip(('ours', 'stock', 'matching'), times, strict=True))


def sampling(head: nn.Module, features: tuple[Tensor, ...], boxes: int, steps: int,
             img_shape: tuple[int, int]) -> Callable[[], object]:
    """A sampling run of a head whose every draw gives boxes of the sizes of objects, so that all levels are used."""
    num_images, device = len(features[0]), features[0].device
    height, width = img_shape
    whwh = torch.tensor([[width, height, width, height]], dtype=torch.float32).expand(num_images, -1)
    bboxes = object_boxes(num_images * boxes, img_shape, torch.Generator().manual_seed(5)).view(num_images, boxes, 4)
    signal = head.box_sampler.coder.encode(bboxes, whwh[:, None]).to(device)
    whwh = whwh.to(device)

    @torch.no_grad()
    def run() -> object:
        head.test_cfg = dict(sampling_timesteps=steps, num_proposals=boxes)
        return head.sample(features, whwh, head.sampling_settings(), lambda number: signal)

    return run


def matching(head: nn.Module, sizes: Sizes, device: torch.device) -> Callable[[], object]:
    """Matching, losses of all stages and their gradients to the head's outputs."""
    counts = object_counts(sizes.matching_images, sizes.matching_objects)
    return losses(head, *matching_problem(head, counts, sizes.boxes, sizes.training_image, device))


def losses(head: nn.Module, outputs, objects) -> Callable[[], object]:
    """The criterion and its backward pass."""

    def run() -> None:
        values = head.criterion(outputs, objects)
        torch.autograd.grad(torch.stack(list(values.values())).sum(), list(outputs))

    return run


# Rows -----------------------------------------------------------------------------------------------------------------


def roi_features(bench: Bench) -> Row:
    """From feature maps to RoI features, without gradient; with what is prepared once per batch."""
    sides = [torch.no_grad()(partial(_look_up, model.bbox_head.roi_extractor, bench.features, bench.boxes()))
             for model in (bench.ours, bench.stock)]
    ours, stock = bench.time(*sides)
    return Row(f'RoI features of one stage, forward, {_setting(bench)}', ours, 'SingleRoIExtractor', stock,
               Target(10, 30))


def roi_features_of_later_stages(bench: Bench) -> Row:
    """The look-up alone: what is prepared once per batch is there, as stages after the first find it."""
    boxes = bench.boxes()
    with torch.no_grad():
        look_ups = [model.bbox_head.roi_extractor(bench.features) for model in (bench.ours, bench.stock)]
    ours, stock = bench.time(*(torch.no_grad()(partial(look_up, boxes)) for look_up in look_ups))
    return Row('the same, of a later stage (nothing to prepare)', ours, 'SingleRoIExtractor', stock, Target(10, 30))


def roi_gradients(bench: Bench) -> Row:
    """Forward and backward to the feature maps."""
    boxes = bench.boxes()
    features = tuple(level.clone().requires_grad_() for level in bench.features)
    with torch.no_grad():
        gradient = torch.ones_like(_look_up(bench.ours.bbox_head.roi_extractor, bench.features, boxes))

    def run(extractor: nn.Module) -> None:
        torch.autograd.grad(_look_up(extractor, features, boxes), features, gradient, allow_unused=True)

    ours, stock = bench.time(*(partial(run, model.bbox_head.roi_extractor) for model in (bench.ours, bench.stock)))
    return Row('the same, forward + backward to the features', ours, 'SingleRoIExtractor', stock, Target(4, 8))


def head_times(bench: Bench, steps: int, target: Target) -> Row:
    """From feature maps to what goes into NMS."""
    ours, stock = bench.time(bench.sampling(bench.ours, steps), bench.sampling(bench.stock, steps))
    return Row(f'head, {_steps(steps)}, {bench.sizes.boxes} boxes', ours, 'head with SingleRoIExtractor', stock, target)


def head_over_products(bench: Bench) -> Row:
    """One step of the head over its matrix products alone."""
    run = bench.sampling(bench.ours, 1)
    recorded = record_products(run)
    ours, alone = bench.time(run, torch.no_grad()(recorded.replay))
    return Row('head, 1 step, over its matrix products alone', ours, f'{len(recorded.products)} matrix products', alone,
               Target(1.6, 1.25, at_most=True))


def training(bench: Bench) -> Row:
    """A step of the whole model with its optimiser."""
    images = ' and '.join(map(str, bench.sizes.training_objects))
    height, width = bench.sizes.training_image
    return Row(f'training step, {height} x {width}, images with {images} objects', bench.training_times['ours'],
               'model with SingleRoIExtractor', bench.training_times['stock'], Target(1.6, 2.0))


def matching_share(bench: Bench) -> Row:
    """Matching and losses over a training step of as many images."""
    sizes = bench.sizes
    factor = sizes.matching_images / len(sizes.training_objects)
    return Row(f'matching + losses of all stages, {sizes.matching_images} images with 1-{sizes.matching_objects} '
               f'objects, {sizes.boxes} boxes', bench.training_times['matching'],
               f'training step above x {factor:g}', bench.training_times['ours'].scaled(factor),
               Target(0.03, 0.01, at_most=True, percent=True))


def inference(bench: Bench, steps: int, target: Target) -> Row:
    """The whole model, from an image to detections."""
    sides = [partial(_detect, model, batch((0, ), model.bbox_head.num_classes, bench.sizes.image), steps)
             for model in (bench.ours, bench.stock)]
    ours, stock = bench.time(*sides)
    return Row(f'whole inference, image to detections, {_steps(steps)}', ours, 'model with SingleRoIExtractor', stock,
               target)


def peak_memory(bench: Bench) -> Row:
    """Peak of a model and its training steps, each time in a process of its own."""
    sides = ([], [])
    for _ in range(bench.memory_runs):
        for values, extractor in zip(sides, ('ours', 'stock'), strict=True):
            values.append(_memory(bench, extractor))
    ours, stock = (Samples(tuple(values), 'MiB') for values in sides)
    return Row('peak memory of a training step', ours, 'model with SingleRoIExtractor', stock,
               Target(1.0, 1.0, at_most=True))


def all_rows(steps: int) -> list[Callable[[Bench], Row]]:
    """The table, with ``steps`` where there are several."""
    return [
        roi_features, roi_features_of_later_stages, roi_gradients,
        partial(head_times, steps=1, target=Target(3.5, 5)),
        partial(head_times, steps=steps, target=Target(3.5, 6)),
        head_over_products, training, matching_share,
        partial(inference, steps=1, target=Target(1.4, 1.7)),
        partial(inference, steps=steps, target=Target(2.5, 3.5)),
        peak_memory,
    ]


def _look_up(extractor: nn.Module, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    return extractor(features)(boxes)


def _detect(model: nn.Module, data: dict, steps: int) -> None:
    model.bbox_head.test_cfg = dict(sampling_timesteps=steps)
    torch.manual_seed(6)
    model.test_step(data)


def _memory(bench: Bench, extractor: str) -> float:
    sizes = bench.sizes
    command = [sys.executable, str(MEMORY_SCRIPT), bench.config_path, '--extractor', extractor, '--device',
               str(bench.device), '--boxes', str(sizes.boxes), '--image', *map(str, sizes.training_image), '--objects',
               *map(str, sizes.training_objects)]
    if bench.cfg_options:
        command += ['--cfg-options', *bench.cfg_options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{MEMORY_SCRIPT.name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])['MiB']


def _setting(bench: Bench) -> str:
    height, width = bench.sizes.image
    levels, channels = len(bench.features), bench.features[0].size(1)
    return f'{bench.sizes.boxes} boxes, {levels} levels, {channels} channels, {height} x {width}, batch 1'


def _steps(steps: int) -> str:
    return '1 step' if steps == 1 else f'{steps} steps'


# Operators ------------------------------------------------------------------------------------------------------------


def operator_counts(bench: Bench) -> list[dict]:
    """Operators and waits of sampling and of a training step's head.

    Sampling runs on the meta device, which stands for a GPU. Training needs values: on the CPU its reads include those
    of host tables, and its uploads cannot be seen.
    """
    features = tuple(level.to('meta') for level in bench.features)
    head = copy.deepcopy(bench.ours.bbox_head).to('meta')
    found = []
    for steps in dict.fromkeys((1, bench.sizes.steps)):
        run = sampling(head, features, bench.sizes.boxes, steps, bench.sizes.image)
        found.append(_count(f'sampling, {_steps(steps)}', run, 'meta'))
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
