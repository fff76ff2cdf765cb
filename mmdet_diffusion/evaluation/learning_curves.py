"""Learning curves from the logs that mmengine writes beside its checkpoints."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..whole_file import write_whole_file


class Curve(NamedTuple):
    """A metric while a detector learnt.

    Attributes:
        iterations (list[int]): at which it was validated.
        seconds (list[float]): of training until then, without validation.
        values (list[float]): of the metric.
        losses (list[tuple[int, float]]): iteration and training loss.
    """

    iterations: list[int]
    seconds: list[float]
    values: list[float]
    losses: list[tuple[int, float]]


def training_log(work_dir: Path) -> list[dict]:
    """Entries of the logs of a work folder; empty where there is none.

    A resumed run's come after those of the runs before it, up to where it resumed; a run from the start replaces them.
    """
    entries = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        run = _entries(path)
        first = next((entry['iter'] for entry in run if _is_of_training(entry)), None)
        if first is not None:
            entries = entries[:next((place for place, entry in enumerate(entries)
                                     if _is_of_training(entry) and entry['iter'] >= first), len(entries))]
        entries += run
    return entries


def _entries(path: Path) -> list[dict]:
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:  # a run that was killed while it wrote
            continue
    return entries


def _is_of_training(entry: Mapping[str, object]) -> bool:
    return 'loss' in entry and 'iter' in entry


def metric_names(work_dir: Path) -> list[str]:
    """Figures of validation that the logs of a work folder have, without the evaluator's prefix."""
    names = [name for entry in training_log(work_dir) if 'loss' not in entry for name in entry if '/' in name]
    return list(dict.fromkeys(name.split('/')[-1] for name in names))


def learning_curve(work_dir: Path, metric: str = 'bbox_mAP') -> Curve:
    """Curve of the training of a work folder.

    Args:
        work_dir (Path): where checkpoints are; empty curves where there is no log.
        metric (str): end of its name in the log, after the evaluator's prefix.
    """
    curve, seconds, last = Curve([], [], [], []), 0.0, 0
    for entry in training_log(work_dir):
        found = [value for name, value in entry.items() if name.split('/')[-1] == metric]
        if found:
            curve.iterations.append(max(last, entry.get('step', 0)))  # a step may be an epoch, or 0
            curve.seconds.append(seconds)
            curve.values.append(found[0])
        elif _is_of_training(entry):
            step = entry['iter']
            seconds += entry.get('time', 0.0) * (step - last)  # the mean of the iterations since the last entry
            last = step
            curve.losses.append((step, entry['loss']))
    return curve


def draw_curves(curves: Mapping[str, Sequence[Curve]], path: Path, *, metric: str = 'AP', with_losses: bool = False
                ) -> bool:
    """Plot curves by name, over iterations and over seconds; False where there is nothing to draw.

    Args:
        curves (Mapping[str, Sequence[Curve]]): trainings by the name of what was trained.
        path (Path): of the picture, written whole or not at all.
        metric (str): for the axis.
        with_losses (bool): training losses too, in a third panel.
    """
    import matplotlib.pyplot as plt
    drawn = [(name, curve) for name, runs in curves.items() for curve in runs
             if curve.values or (with_losses and curve.losses)]
    if not drawn:
        return False
    number = 2 * any(curve.values for _, curve in drawn) + with_losses
    figure, panels = plt.subplots(1, number, figsize=(5.5 * number, 4.2), layout='constrained', squeeze=False)
    of_metric, of_losses = panels[0, :number - with_losses], panels[0, -1]
    colours = {name: f'C{place}' for place, name in enumerate(curves)}
    named = set()
    for name, curve in drawn:
        style = dict(color=colours[name], label=None if name in named else name)
        named.add(name)
        for axes, places in zip(of_metric, (curve.iterations, curve.seconds), strict=False):
            axes.plot(places, curve.values, 'o-', markersize=4, **style)
        if with_losses:
            of_losses.plot(*zip(*curve.losses, strict=True), linewidth=1, **style)
    for axes, label in zip(of_metric, ('iterations', 'seconds of training'), strict=False):
        axes.set(xlabel=label, ylabel=metric)
    if with_losses:
        of_losses.set(xlabel='iterations', ylabel='loss of training', yscale='log')
    for axes in panels[0]:
        axes.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format=path.suffix.lstrip('.') or 'png')
    plt.close(figure)
    write_whole_file(path, buffer.getvalue())
    return True
