"""Rows of the benchmark's table: each measures one thing and what it is compared with."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmark_comparison import Row, Target
from benchmark_models import (
    Sizes,
    batch,
    build_model,
    losses,
    matching_problem,
    object_boxes,
    object_counts,
    pyramid,
    sampling,
    training_step,
)
from benchmark_suppression import suppression
from benchmark_timing import Samples, interleave
from matrix_products import record_products
from mmengine.config import Config
from torch import Tensor, nn

from mmdet_diffusion.half_precision import HALF_DTYPES, half_precision

HALF = 'bfloat16'
CLASS_COUNTS = (80, 365, 1203)  # of COCO, Objects365 and LVIS
MEMORY_SCRIPT = Path(__file__).with_name('training_memory.py')


class Bench:
    """What the rows share.

    Args:
        config (Config): of the model and its optimiser.
        device (torch.device): to measure on.
        sizes (Sizes): of the inputs.
        repetitions (int): of each time.
        memory_runs (int): processes per side for the peak of memory.
        keep_memory (bool): whether this process keeps freed memory, and those for the peak are to.
    """

    def __init__(self, *, config: Config, device: torch.device, sizes: Sizes, repetitions: int,
                 memory_runs: int, keep_memory: bool) -> None:
        self.config, self.device, self.sizes = config, device, sizes
        self.repetitions, self.memory_runs, self.keep_memory = repetitions, memory_runs, keep_memory

    @cached_property
    def ours(self) -> nn.Module:
        """The config's model."""
        return build_model(self.config, self.sizes.boxes, stock=False).to(self.device).eval()

    @cached_property
    def stock(self) -> nn.Module:
        """The same with mmdet's RoI extractor."""
        return build_model(self.config, self.sizes.boxes, stock=True).to(self.device).eval()

    @cached_property
    def half(self) -> nn.Module:
        """The config's model in half precision, with the layout that suits it."""
        config = Config(dict(model=dict(self.config.model, test_dtype=HALF, channels_last=True)))
        return build_model(config, self.sizes.boxes, stock=False).to(self.device).eval()

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
        """Training steps of both sides, ours without its optimiser, and matching + losses of many images, in turn.

        On models of their own, which the optimiser changes.
        """
        ours, stock = (build_model(self.config, self.sizes.boxes, stock=stock).to(self.device)
                       for stock in (False, True))
        steps = [training_step(model, self.config, self.sizes) for model in (ours, stock)]
        times = self.time(*steps, training_step(ours, self.config, self.sizes, optimise=False), self._matching())
        return dict(zip(('ours', 'stock', 'ours without optimiser', 'matching'), times, strict=True))

    def _matching(self) -> Callable[[], object]:
        sizes, head = self.sizes, self.ours.bbox_head
        counts = object_counts(sizes.matching_images, sizes.matching_objects)
        return losses(head, *matching_problem(head, counts, sizes.boxes, sizes.training_image, self.device))


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
    return Row(f'head, {steps_text(steps)}, {bench.sizes.boxes} boxes', ours, 'head with SingleRoIExtractor', stock,
               target)


def head_over_products(bench: Bench) -> Row:
    """One step of the head over its matrix products alone, those of torch's fused attention one by one."""
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
    """Matching and losses over a training step of as many images, whose optimiser steps once."""
    sizes, times = bench.sizes, bench.training_times
    factor = sizes.matching_images / len(sizes.training_objects)
    more = times['ours without optimiser'].scaled(factor - 1)
    return Row(f'matching + losses of all stages, {sizes.matching_images} images with 1-{sizes.matching_objects} '
               f'objects, {sizes.boxes} boxes', times['matching'],
               f'training step above, all but its optimiser x {factor:g}', times['ours'].plus(more),
               Target(0.03, 0.01, at_most=True, percent=True))


def inference(bench: Bench, steps: int, target: Target) -> Row:
    """The whole model, from an image to detections."""
    ours, stock = bench.time(*_detecting(bench, (bench.ours, bench.stock), steps))
    return Row(f'whole inference, image to detections, {steps_text(steps)}', ours, 'model with SingleRoIExtractor',
               stock, target)


def head_in_half_precision(bench: Bench) -> Row:
    """From feature maps to what goes into NMS, one step under autocast."""
    run = bench.sampling(bench.ours, 1)

    def run_in_half() -> None:
        with half_precision(bench.device, HALF_DTYPES[HALF], 'the benchmark'):
            run()

    half, single = bench.time(run_in_half, run)
    return Row(f'head in {HALF}, 1 step, {bench.sizes.boxes} boxes', half, 'our head in float32', single,
               Target(1.7, 2.0))


def inference_in_half_precision(bench: Bench, steps: int, target: Target) -> Row:
    """The whole model in half precision and channels-last, over our own in float32 as it is by default."""
    half, single = bench.time(*_detecting(bench, (bench.half, bench.ours), steps))
    return Row(f'whole inference in {HALF}, channels-last, {steps_text(steps)}', half, 'our model in float32', single,
               target)


def post_processing(bench: Bench, num_classes: int, steps: int) -> Row:
    """From the detections of all steps to those of an image, with the number of calls of NMS."""
    sides = suppression(bench.sizes, num_classes, steps, bench.device)
    ours, by_class = bench.time(sides.ours, sides.by_class)
    return Row(f'post-processing, {num_classes} classes, {steps_text(steps)}, {bench.sizes.boxes} boxes, '
               f'{sides.calls} x NMS', ours, f'{sides.calls_by_class} x NMS, once a class', by_class, Target(1.0, 5.0))


def peak_memory(bench: Bench) -> Row:
    """Peak of a model and its training steps, each time in a process of its own."""
    sides = ([], [])
    with TemporaryDirectory() as folder:
        config = str(Path(folder, 'config.py'))
        bench.config.dump(config)
        for _ in range(bench.memory_runs):
            for values, extractor in zip(sides, ('ours', 'stock'), strict=True):
                values.append(_memory(config, extractor, bench))
    ours, stock = (Samples(tuple(values), 'MiB') for values in sides)
    return Row('peak memory of a training step', ours, 'model with SingleRoIExtractor', stock,
               Target(1.0, 1.0, at_most=True))


def all_rows(steps: int, *, half: bool) -> list[Callable[[Bench], Row]]:
    """The table, with ``steps`` where there are several, and with ``half`` the rows in half precision."""
    rows = [
        roi_features, roi_features_of_later_stages, roi_gradients,
        partial(head_times, steps=1, target=Target(3.5, 5)),
        partial(head_times, steps=steps, target=Target(3.5, 6)),
        head_over_products, training, matching_share,
        partial(inference, steps=1, target=Target(1.4, 1.7)),
        partial(inference, steps=steps, target=Target(2.5, 3.5)),
        *(partial(post_processing, num_classes=number, steps=several) for number in CLASS_COUNTS
          for several in (1, steps)),
        peak_memory,
    ]
    if half:
        rows += [head_in_half_precision, partial(inference_in_half_precision, steps=1, target=Target(1.8, 2.0)),
                 partial(inference_in_half_precision, steps=steps, target=Target(1.7, 2.0))]
    return rows


def row_name(measure: Callable[[Bench], Row]) -> str:
    """By which a command line chooses it; rows of one kind share it."""
    return getattr(measure, 'func', measure).__name__


def _look_up(extractor: nn.Module, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    return extractor(features)(boxes)


def _detecting(bench: Bench, models: tuple[nn.Module, ...], steps: int) -> list[Callable[[], None]]:
    """What runs each model from an image to detections."""
    test_cfg = dict(bench.config.model.test_cfg, sampling_timesteps=steps, num_proposals=None)
    data = batch((0, ), bench.ours.bbox_head.num_classes, bench.sizes.image)
    return [partial(_detect, model, data, test_cfg) for model in models]


def _detect(model: nn.Module, data: dict, test_cfg: dict) -> None:
    model.bbox_head.test_cfg = test_cfg
    torch.manual_seed(6)
    model.test_step(data)


def _memory(config: str, extractor: str, bench: Bench) -> float:
    sizes = bench.sizes
    command = [sys.executable, str(MEMORY_SCRIPT), config, '--extractor', extractor, '--device', str(bench.device),
               '--boxes', str(sizes.boxes), '--image', *map(str, sizes.training_image), '--objects',
               *map(str, sizes.training_objects), *(['--keep-memory'] if bench.keep_memory else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{MEMORY_SCRIPT.name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])['MiB']


def _setting(bench: Bench) -> str:
    height, width = bench.sizes.image
    levels, channels = len(bench.features), bench.features[0].size(1)
    return f'{bench.sizes.boxes} boxes, {levels} levels, {channels} channels, {height} x {width}, batch 1'


def steps_text(steps: int) -> str:
    return '1 step' if steps == 1 else f'{steps} steps'
