"""Intervals of average precision and of differences, by a bootstrap over images (Efron & Tibshirani 1993, ch. 13).

What varies: which images were taken, what training drew, what sampling drew. Images are drawn anew, the same for both
sides of a difference. What sampling draws for one image is independent of what it draws for another, so drawing images
covers that too, with one seed as with the mean of several. Trainings are drawn anew where there are several; with one
the figures hold for these weights alone.

Percentiles are expanded for the number of images (Hesterberg 2015, arXiv:1411.5279): plain ones are too narrow.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from .average_precision import Array, ImageMatches

NUM_DRAWS = 1000
LEVEL = 0.95


class Contestant(NamedTuple):
    """A detector at one setting.

    Attributes:
        name (str): for sentences.
        trainings (Sequence[Sequence[ImageMatches]]): for each training, its sampling seeds.
    """

    name: str
    trainings: Sequence[Sequence[ImageMatches]]


class Interval(NamedTuple):
    """A figure with its interval, in the unit of the statistic.

    Attributes:
        value (float): of the data as they are.
        low (float): lower end, at 95 % confidence.
        high (float): upper end.
        share_above (float): share of the draws above 0.
    """

    value: float
    low: float
    high: float
    share_above: float

    @property
    def is_difference(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def interval(contestant: Contestant, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> Interval:
    """AP of a contestant with its interval."""
    return _interval(drawn(contestant, num_draws=num_draws, seed=seed), _num_images(contestant))


def difference(first: Contestant, second: Contestant, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> Interval:
    """AP of the first less that of the second, with its interval.

    Raises:
        ValueError: if they were not tested on the same images.
    """
    if _image_ids(first) != _image_ids(second):
        raise ValueError(f'{first.name} and {second.name} were not tested on the same images')
    values = [drawn(contestant, num_draws=num_draws, seed=seed, side=side)
              for side, contestant in enumerate((first, second))]
    return _interval(values[0] - values[1], _num_images(first))


def drawn(contestant: Contestant, *, num_draws: int, seed: int, side: int = 0) -> Array:
    """AP of the data as they are, then of each draw, float64, shape (1 + num_draws,).

    The same seed draws the same images for every contestant; trainings are drawn for each ``side`` on its own.
    """
    trainings = contestant.trainings
    aps = np.stack([np.mean([aps_of_draws(matches, num_draws=num_draws, seed=seed) for matches in training], axis=0)
                    for training in trainings])
    chosen = np.random.default_rng([seed, 1 + side]).integers(len(trainings), size=(len(trainings), num_draws))
    return np.append(aps[:, 0].mean(), np.take_along_axis(aps[:, 1:], chosen, axis=0).mean(0))


def aps_of_draws(matches: ImageMatches, *, num_draws: int, seed: int = 0) -> Array:
    """AP of the data as they are, then of each draw of the images, float64, shape (1 + num_draws,).

    Computed once and kept with the matches, since a contestant is compared with many others.
    """
    if (num_draws, seed) not in matches.draws:
        matches.draws[num_draws, seed] = matches.drawn_aps(_weights(matches.num_images, num_draws, seed))
    return matches.draws[num_draws, seed]


@lru_cache(maxsize=1)  # contestants have the same images, one after the other
def _weights(num_images: int, num_draws: int, seed: int) -> Array:
    """How often each image counts: once, then as it was drawn, shape (1 + num_draws, num_images)."""
    places = np.random.default_rng([seed, 0]).integers(num_images, size=(num_draws, num_images))
    return np.stack([np.ones(num_images), *(np.bincount(row, minlength=num_images) for row in places)])


def sentence(first: str, second: str, found: Interval) -> str:
    """The difference in words, in AP from 0 to 100."""
    value, low, high = (100 * figure for figure in found[:3])
    if not found.is_difference:
        return f'no difference shown between {first} and {second}: {value:+.1f} AP (95 %: {low:+.1f} to {high:+.1f})'
    if value < 0:
        first, second, value, low, high = second, first, -value, -high, -low
    return f'{first} is better than {second} by {value:.1f} AP (95 %: {low:.1f} to {high:.1f})'


def expanded_tail(num_images: int) -> float:
    """Share of the draws to leave out on each side, less than 2.5 % where images are few."""
    if num_images < 2:
        return 0.0
    quantile = stats.t.ppf((1 + LEVEL) / 2, num_images - 1)
    return float(stats.norm.cdf(-math.sqrt(num_images / (num_images - 1)) * quantile))


def _image_ids(contestant: Contestant) -> set[tuple]:
    return {matches.image_ids for training in contestant.trainings for matches in training}


def _num_images(contestant: Contestant) -> int:
    return contestant.trainings[0][0].num_images


def _interval(values: Array, num_images: int) -> Interval:
    """Of the value of the data, and after it those of the draws."""
    tail = expanded_tail(num_images)
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return Interval(float(values[0]), float(low), float(high), float((values[1:] > 0).mean()))
