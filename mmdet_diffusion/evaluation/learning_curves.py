"""Learning curves from the logs that mmengine writes beside its checkpoints."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


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


def training_log(checkpoint: Path) -> list[dict]:
    """Entries of the logs of a work folder, a resumed run's after those before it; empty where there is none."""
    entries = []
    for path in sorted(checkpoint.parent.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:  # a run that was killed while it wrote
                continue
    return entries


def learning_curve(checkpoint: Path, metric: str = 'bbox_mAP') -> Curve:
    """Curve of the training that wrote a checkpoint.

    Args:
        checkpoint (Path): in its work folder.
        metric (str): end of its name in the log, after the evaluator's prefix.
    """
    curve, seconds, last = Curve([], [], [], []), 0.0, 0
    for entry in training_log(checkpoint):
        found = [value for name, value in entry.items() if name.split('/')[-1] == metric]
        if found:
            curve.iterations.append(last)
            curve.seconds.append(seconds)
            curve.values.append(found[0])
        elif 'loss' in entry and 'iter' in entry:
            step = entry['iter']
            if step <= last:  # resumed from an earlier checkpoint
                continue
            seconds += entry.get('time', 0.0) * (step - last)  # the mean of the iterations since the last entry
            last = step
            curve.losses.append((step, entry['loss']))
    return curve


def draw_curves(curves: Mapping[str, Sequence[Curve]], path: Path, *, metric: str = 'AP') -> bool:
    """Plot curves by name, over iterations and over seconds; False where no training was validated."""
    import matplotlib.pyplot as plt
    drawn = [(name, curve) for name, runs in curves.items() for curve in runs if curve.values]
    if not drawn:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout='constrained')
    colours = {name: f'C{place}' for place, name in enumerate(curves)}
    for name, curve in drawn:
        first = curve is next(one for other, one in drawn if other == name)
        for axes, places in ((left, curve.iterations), (right, curve.seconds)):
            axes.plot(places, curve.values, 'o-', color=colours[name], markersize=4, label=name if first else None)
    left.set(xlabel='iterations', ylabel=metric)
    right.set(xlabel='seconds of training')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
