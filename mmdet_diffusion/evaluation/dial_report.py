"""What a sweep over the dial showed: table, plot, lines to paste."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import DataLoader

from ..whole_file import write_whole_file
from . import pareto
from .bootstrap import Contestant, Interval, difference, interval, sentence
from .detection_records import ImageDetections
from .dial_settings import DialSetting
from .other_metrics import evaluate_records, is_coco_box_ap
from .scoring import score_runs
from .shared_features import percentiles


class Row(NamedTuple):
    """One setting.

    Attributes:
        setting (DialSetting): which.
        metrics (dict[str, list[float]]): by name, a value for each seed.
        interval (Interval): of AP over the images.
        seconds (dict[str, float]): percentiles of an image's time, features and head.
        features (float): seconds that the features of all images took.
        head (float): the same of all else, mean over the seeds.
    """

    setting: DialSetting
    metrics: dict[str, list[float]]
    interval: Interval
    seconds: dict[str, float]
    features: float
    head: float


class DialReport(NamedTuple):
    """All settings.

    Attributes:
        rows (list[Row]): in the order that was asked for.
        comparisons (list[str]): each control against its setting, in words.
        num_images (int): of the test set.
        seeds (Sequence[int]): of sampling.
        batch_size (int): of the loader; a batch's time was divided by it.
    """

    rows: list[Row]
    comparisons: list[str]
    num_images: int
    seeds: Sequence[int]
    batch_size: int

    @classmethod
    def of_records(cls, records: Mapping[DialSetting, Sequence[Sequence[ImageDetections]]], *, seeds: Sequence[int],
                   truth: COCO, model: nn.Module, loader: DataLoader, evaluator: dict | list[dict],
                   num_draws: int) -> 'DialReport':
        """Score the records of all settings, a list of images for each seed.

        Args:
            records (Mapping[DialSetting, Sequence[Sequence[ImageDetections]]]): of all settings.
            seeds (Sequence[int]): of sampling.
            truth (COCO): of :func:`ground_truth`.
            model (nn.Module): the detector.
            loader (DataLoader): of the test set, in its order.
            evaluator (dict | list[dict]): ``test_evaluator`` of the config.
            num_draws (int): of the bootstrap.
        """
        rows = []
        scored = iter(score_runs(truth, [run for runs in records.values() for run in runs], num_draws=num_draws))
        contestants = {setting: Contestant(setting.label, [[next(scored) for _ in runs]])
                       for setting, runs in records.items()}
        for setting, runs in records.items():
            metrics = _by_name([matches.summary() for matches in contestants[setting].trainings[0]])
            found = interval(contestants[setting], num_draws=num_draws)
            if not is_coco_box_ap(evaluator):
                metrics |= _by_name([evaluate_records(evaluator, model, loader, run) for run in runs])
            times = [[sum(image.seconds) for image in run] for run in runs]
            features, heads = ([sum(image.seconds[part] for image in run) for run in runs] for part in (0, 1))
            rows.append(Row(setting, metrics, found, percentiles([one for run in times for one in run]), mean(features),
                            mean(heads)))
        comparisons = _comparisons(contestants, num_draws)
        return cls(rows, comparisons, len(loader.dataset), seeds, loader.batch_size or 1)

    def points(self) -> list[pareto.Point]:
        """Settings that are meant to be used, for the plot."""
        points = []
        for row in self.rows:
            if not row.setting.control:
                points.append(pareto.Point(row.setting.label, 1000 * row.seconds['p50'], mean(row.metrics['AP']),
                                           row.interval.low, row.interval.high))
        return points

    def markdown(self) -> str:
        """The table, with what sharing the features saved."""
        names = [name for name in self.rows[0].metrics if not name.startswith('AP_')]
        header = ['setting', *names, '95 % over images', 'ms p50', 'p90', 'p99']
        lines = [_line(header), _line(['---', *['---:'] * (len(header) - 1)])]
        for row in self.rows:
            lines.append(_line([row.setting.label, *(spread(row.metrics[name]) for name in names),
                                f'{row.interval.low:.3f} to {row.interval.high:.3f}',
                                *(f'{1000 * row.seconds[name]:.0f}' for name in ('p50', 'p90', 'p99'))]))
        return '\n'.join([*lines, '', self.savings()])

    def savings(self) -> str:
        """What it saved to compute features once."""
        cells = len(self.rows) * len(self.seeds)
        features = mean(row.features for row in self.rows)
        heads = sum(row.head for row in self.rows) * len(self.seeds)
        return (f'{self.num_images} images, {cells} cells ({len(self.rows)} settings x {len(self.seeds)} seeds); '
                f'batches of {self.batch_size}. Features once an image: {features:.0f} s instead of '
                f'{cells * features:.0f} s. Heads: {heads:.0f} s, with steps that settings share counted in each.')


def _by_name(runs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [run[name] for run in runs] for name in runs[0]}


def _comparisons(contestants: Mapping[DialSetting, Contestant], num_draws: int) -> list[str]:
    """Each control against the setting that it takes something away from."""
    lines = []
    for setting, contestant in contestants.items():
        if setting.control:
            wanted = [other for other in contestants if not other.control and not other.changes and other.steps > 1
                      and other.boxes * (other.steps if setting.steps == 1 else 1) == setting.boxes
                      and setting.steps in (1, other.steps)]
            lines += [sentence(other.label, setting.label,
                               difference(contestants[other], contestant, num_draws=num_draws)) for other in wanted]
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean, with the deviation over seeds where there are several."""
    return f'{mean(values):.3f}' + (f' ± {stdev(values):.3f}' if len(values) > 1 else '')


def write_report(report: DialReport, folder: Path, *, title: str, device: str, under_ms: Sequence[float]) -> str:
    """Write ``dial.md``, ``dial.csv``, ``dial.json`` and ``dial.png``; gives the text of the first."""
    points = report.points()
    by_label = {row.setting.label: row.setting for row in report.rows}
    lines = [report.markdown(), '']
    for milliseconds in under_ms:
        best = pareto.best_within(points, milliseconds)
        lines.append(f'Best AP under {milliseconds:g} ms: ' + (
            f'{best.label}, {best.value:.3f}: `--cfg-options {by_label[best.label].options()}`' if best else
            f'none is so fast; the fastest takes {min(point.milliseconds for point in points):.0f} ms'))
    lines += ['', 'No other setting is faster and better:', '']
    lines += [f'- {point.milliseconds:.0f} ms, {point.value:.3f}: `--cfg-options {by_label[point.label].options()}`'
              for point in pareto.front(points)]
    if report.comparisons:
        lines += ['', 'Controls:', '', *(f'- {line}' for line in report.comparisons)]
    text = f'# The dial: {title}\n\nOn {device}; AP over IoU 0.50 to 0.95.\n\n' + '\n'.join(lines) + '\n'
    content = dict(title=title, device=device, metric='AP', seeds=list(report.seeds),
                   num_images=report.num_images, batch_size=report.batch_size, comparisons=report.comparisons,
                   settings=[dict(label=row.setting.label, values=row.setting.values(), control=row.setting.control,
                                  metrics=row.metrics, interval=row.interval._asdict(),
                                  seconds=row.seconds) for row in report.rows])
    for name, written in (('md', text), ('json', json.dumps(content, indent=1, default=str) + '\n'),
                          ('csv', _csv(report))):
        write_whole_file(folder / f'dial.{name}', written.encode())
    pareto.draw(points, folder / 'dial.png', title=title)
    return text


def _csv(report: DialReport) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    names = list(report.rows[0].metrics)
    writer.writerow(['setting', 'steps', 'boxes', 'control', 'seed', *names, 'p50_ms', 'p90_ms', 'p99_ms'])
    for row in report.rows:
        for place, seed in enumerate(report.seeds):
            writer.writerow([row.setting.label, row.setting.steps, row.setting.boxes, row.setting.control, seed,
                             *(row.metrics[name][place] for name in names),
                             *(1000 * row.seconds[name] for name in ('p50', 'p90', 'p99'))])
    return file.getvalue()


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
