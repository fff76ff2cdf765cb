"""The settings that no other beats in time and accuracy at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..whole_file import whole_file


class Point(NamedTuple):
    """A setting in the plane of time and accuracy.

    Attributes:
        label (str): how it is called in the plot.
        milliseconds (float): of an image.
        value (float): higher is better.
        low (float): end of its interval.
        high (float): the other.
    """

    label: str
    milliseconds: float
    value: float
    low: float
    high: float


def front(points: Sequence[Point]) -> list[Point]:
    """Points for which every other one is slower or no better, by rising time."""
    kept = []
    for point in sorted(points, key=lambda point: (point.milliseconds, -point.value)):
        if not kept or point.value > kept[-1].value:
            kept.append(point)
    return kept


def best_within(points: Sequence[Point], milliseconds: float) -> Point | None:
    """The best point that is at most so slow; None where all are slower."""
    fast = [point for point in points if point.milliseconds <= milliseconds]
    return max(fast, key=lambda point: (point.value, -point.milliseconds)) if fast else None


def draw(points: Sequence[Point], path: Path, *, title: str) -> None:
    """Plot all points with their intervals, the front as a line, each point of it with its label."""
    import matplotlib.pyplot as plt  # takes a second, and the arithmetic above needs it not
    best = front(points)
    figure, axes = plt.subplots(figsize=(9, 5.5), layout='constrained')
    for point in points:
        colour = 'tab:blue' if point in best else 'silver'
        ends = [[max(0, point.value - point.low)], [max(0, point.high - point.value)]]  # the value may lie outside
        axes.errorbar(point.milliseconds, point.value, ends,
                      fmt='o', color=colour, capsize=2, elinewidth=0.8, markersize=5, zorder=3 if point in best else 2)
        axes.annotate(point.label, (point.milliseconds, point.value), (6, -3), textcoords='offset points', fontsize=8,
                      color='black' if point in best else 'gray')
    axes.plot([point.milliseconds for point in best], [point.value for point in best], color='tab:blue', linewidth=1)
    axes.set(xscale='log', xlabel='ms an image (median; steps x boxes at each point)', ylabel='AP', title=title)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('{x:g}')
    axes.grid(alpha=0.3, which='both')
    axes.margins(x=0.12)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=110)
    plt.close(figure)
