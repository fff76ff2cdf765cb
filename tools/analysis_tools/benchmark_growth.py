"""How the cost of a config's head grows: with boxes, sampling steps, images and, in matching, objects.

Example:
    python tools/analysis_tools/benchmark_growth.py CONFIG --plot growth.png --out growth.json

Fits cost = a * size ** exponent to the medians, by least squares of the logarithms. An exponent of 1 is linear; below 1
a part of the cost does not grow. `--quick` takes small sizes, whose exponents mean little.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from benchmark_head import check_target, read_config, usable_device
from benchmark_models import QUICK, Sizes, build_model, losses, matching_problem, pyramid, sampling
from benchmark_timing import Samples, environment, interleave
from mmengine.config import DictAction
from torch import nn

from mmdet_diffusion.host_memory import keep_freed_memory

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

FEW_BOXES = 100  # where another size grows, to keep the largest measurement short
BOXES, STEPS, IMAGES, OBJECTS = (100, 250, 500, 1000, 2000, 4000), (1, 2, 4, 8, 16), (1, 2, 4, 8), (1, 5, 20, 100, 500)
QUICK_BOXES, QUICK_STEPS, QUICK_IMAGES, QUICK_OBJECTS = (10, 20, 40), (1, 2), (1, 2), (1, 8)


class Series(NamedTuple):
    """One size that grows.

    Attributes:
        what (str): is measured.
        size (str): grows.
        sizes (tuple[int, ...]): in rising order.
        prepare (Callable[[int], Callable[[], object]]): from a size to what is timed.
    """

    what: str
    size: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], Callable[[], object]]


class Growth(NamedTuple):
    """A measured series.

    Attributes:
        series (Series): what was measured.
        samples (list[Samples]): seconds at each size.
    """

    series: Series
    samples: list[Samples]

    @property
    def medians(self) -> list[float]:
        """Seconds at each size."""
        return [sample.median for sample in self.samples]

    @property
    def exponent(self) -> float:
        """Of the power of the size that fits the medians best."""
        return fit(self.series.sizes, self.medians)[0]

    @property
    def last_exponent(self) -> float:
        """The same of the two largest sizes, where what does not grow weighs least."""
        return fit(self.series.sizes[-2:], self.medians[-2:])[0]


def fit(sizes: tuple[int, ...], seconds: list[float]) -> tuple[float, float]:
    """Exponent and logarithm of the factor of ``seconds = factor * sizes ** exponent``."""
    exponent, factor = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(exponent), float(factor)


def all_series(head: nn.Module, device: torch.device, quick: bool) -> Iterator[Series]:
    """Boxes, steps, images and objects."""
    sizes = QUICK if quick else Sizes()
    few = QUICK.boxes if quick else FEW_BOXES
    one_image = pyramid(head, 1, sizes.image, device)

    def images(number: int) -> Callable[[], object]:
        return sampling(head, pyramid(head, number, sizes.image, device), few, 1, sizes.image)

    def objects(number: int) -> Callable[[], object]:
        return losses(head, *matching_problem(head, (number, ), sizes.boxes, sizes.training_image, device))

    yield Series('head, 1 step', 'boxes', QUICK_BOXES if quick else BOXES,
                 lambda number: sampling(head, one_image, number, 1, sizes.image))
    yield Series(f'head, {few} boxes', 'steps', QUICK_STEPS if quick else STEPS,
                 lambda number: sampling(head, one_image, few, number, sizes.image))
    yield Series(f'head, 1 step, {few} boxes', 'images', QUICK_IMAGES if quick else IMAGES, images)
    yield Series(f'matching + losses, {sizes.boxes} boxes', 'objects', QUICK_OBJECTS if quick else OBJECTS, objects)


def measure(series: Series, repetitions: int, device: torch.device) -> Growth:
    """Time a series, all sizes in turn."""
    runs = [series.prepare(size) for size in series.sizes]
    return Growth(series, interleave(runs, repetitions, device))


def table(growths: list[Growth]) -> str:
    """Markdown table of medians and exponents."""
    lines = ['| what | grows | median seconds at each size | exponent | at the end |',
             '| --- | --- | --- | ---: | ---: |']
    for growth in growths:
        points = ', '.join(f'{size}: {seconds:.4g}'
                           for size, seconds in zip(growth.series.sizes, growth.medians, strict=True))
        lines.append(f'| {growth.series.what} | {growth.series.size} | {points} | {growth.exponent:.2f} | '
                     f'{growth.last_exponent:.2f} |')
    return '\n'.join(lines)


def plot(growths: list[Growth], file: Path) -> None:
    """One panel for each series, both axes logarithmic, ranges as bars, the fit as a line."""
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7.5), layout='constrained')
    for growth, axis in zip(growths, axes.flat, strict=True):
        series, medians = growth.series, np.array(growth.medians)
        low = medians - [min(sample.values) for sample in growth.samples]
        high = [max(sample.values) for sample in growth.samples] - medians
        axis.errorbar(series.sizes, medians, (low, high), fmt='o', capsize=3, label='median and range')
        exponent, factor = fit(series.sizes, growth.medians)
        axis.plot(series.sizes, np.exp(factor) * np.array(series.sizes, dtype=float)**exponent,
                  label=f'~ {series.size} ^ {exponent:.2f}')
        axis.set(xscale='log', yscale='log', xlabel=series.size, ylabel='seconds', title=series.what)
        axis.set_xticks(series.sizes, [str(size) for size in series.sizes])
        axis.set_xticks([], minor=True)
        axis.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def parse_args(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('--device', type=usable_device, default='cuda:0' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--quick', action='store_true', help='small sizes, to see that it works')
    parser.add_argument('--repetitions', type=int, default=3, help='of each size')
    parser.add_argument('--plot', type=Path, help='PNG file to write')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--overwrite', action='store_true', help='of files that are there')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(argv)
    if args.repetitions < 1:
        parser.error(f'--repetitions must be at least 1, got {args.repetitions}')
    for file in (args.plot, args.out):
        check_target(parser, file, args.overwrite)
    return parser, args


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser, args = parse_args(argv)
    config = read_config(parser, args)
    keeps_memory = keep_freed_memory()
    try:
        model = build_model(config, (QUICK if args.quick else Sizes()).boxes, stock=False)
    except ValueError as error:
        parser.error(str(error))
    head = model.bbox_head.to(args.device).eval()
    surroundings = dict(environment(args.device, keeps_memory=keeps_memory), config=args.config, quick=str(args.quick))
    print(', '.join(f'{name}: {value}' for name, value in surroundings.items()) + '\n')
    timed = partial(measure, repetitions=args.repetitions, device=args.device)
    growths = [timed(series) for series in all_series(head, args.device, args.quick)]
    print(table(growths))
    if args.plot:
        plot(growths, args.plot)
    if args.out:
        records = [dict(what=growth.series.what, grows=growth.series.size, sizes=growth.series.sizes,
                        seconds=[sample.values for sample in growth.samples], medians=growth.medians,
                        exponent=growth.exponent, last_exponent=growth.last_exponent) for growth in growths]
        args.out.write_text(json.dumps(dict(environment=surroundings, series=records), indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
