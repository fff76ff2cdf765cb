"""Intervals of average precision and of differences, by a bootstrap over images (Efron & Tibshirani 1993, ch. 13).

What varies: which images were taken, what training drew, what sampling drew. Images are drawn anew, the same for both
sides of a difference. What sampling draws for one image is independent of what it draws for another, so drawing images
covers that too, with one seed as with the mean of several. Images that depend on each other, as frames of a video do,
are drawn together. Trainings are drawn anew where there are several, and alike for two settings of the same ones; with
one the figures hold for these weights alone.

Percentiles are expanded for the number of images (Hesterberg 2015, arXiv:1411.5279): plain ones are too narrow. What
drawing n trainings changes is expanded by sqrt(n / (n - 1)) for the same reason.
"""

import argparse
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from .average_precision import NO_OBJECTS, Array, ImageMatches

NUM_DRAWS = 1000
LEVEL = 0.95
FEWEST_DRAWS = 100  # the ends are the 2 or 3 outermost of so many
FEWEST_IMAGES = 6  # of fewer all lie on one side of 0 in more than 5 % of cases where nothing differs: 2 * 0.5**5


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
        share_above (float): share of the draws above 0; of those with an object, as the ends are.
    """

    value: float
    low: float
    high: float
    share_above: float

    @property
    def is_difference(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def draws(text: str) -> int:
    """A number of draws, as a type of ``argparse``."""
    if not text.isdecimal() or int(text) < FEWEST_DRAWS:
        raise argparse.ArgumentTypeError(f'an interval takes {FEWEST_DRAWS} draws or more, got {text!r}')
    return int(text)


def interval(contestant: Contestant, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> Interval:
    """AP of a contestant with its interval; of fewer than :data:`FEWEST_IMAGES` images it is all that AP can be."""
    return _interval(drawn(contestant, num_draws=num_draws, seed=seed), _num_images(contestant), (0.0, 1.0))


def difference(first: Contestant, second: Contestant, *, same_trainings: bool = False, together: int = 1,
               num_draws: int = NUM_DRAWS, seed: int = 0) -> Interval:
    """AP of the first less that of the second, with its interval.

    Args:
        first (Contestant): tested on the same images as the second.
        second (Contestant): see there.
        same_trainings (bool): both are the same trainings in the same order, at different settings: what one training
            has more or less at both is no part of the difference.
        together (int): images in a row that are drawn as one, such as the frames of a clip.
        num_draws (int): of the bootstrap.
        seed (int): of the draws.

    Raises:
        ValueError: if they were not tested on the same images, or these are no whole number of so many.
    """
    if _image_ids(first) != _image_ids(second):
        raise ValueError(f'{first.name} and {second.name} were not tested on the same images')
    if _num_images(first) % together:
        raise ValueError(f'{_num_images(first)} images are no whole number of {together} together')
    values = [drawn(contestant, num_draws=num_draws, seed=seed, side=0 if same_trainings else side, together=together)
              for side, contestant in enumerate((first, second))]
    return _interval(values[0] - values[1], _num_images(first) // together, (-1.0, 1.0))


def drawn(contestant: Contestant, *, num_draws: int, seed: int, side: int = 0, together: int = 1) -> Array:
    """AP of the data as they are, then of each draw, float64, shape (1 + num_draws,).

    The same seed draws the same images for every contestant; trainings are drawn for each ``side`` on its own. Where
    none of the images drawn has an object it is not a number.
    """
    trainings = contestant.trainings
    aps = np.stack([np.mean([aps_of_draws(matches, num_draws=num_draws, seed=seed, together=together)
                             for matches in training], axis=0) for training in trainings])
    aps[aps == NO_OBJECTS] = np.nan
    number = len(trainings)
    chosen = np.random.default_rng([seed, 1 + side]).integers(number, size=(number, num_draws))
    of_all = aps[:, 1:].mean(0)
    of_chosen = np.take_along_axis(aps[:, 1:], chosen, axis=0).mean(0)
    expansion = math.sqrt(number / (number - 1)) if number > 1 else 1.0
    return np.append(aps[:, 0].mean(), of_all + expansion * (of_chosen - of_all))


def aps_of_draws(matches: ImageMatches, *, num_draws: int, seed: int = 0, together: int = 1) -> Array:
    """AP of the data as they are, then of each draw of the images, float64, shape (1 + num_draws,).

    Computed once and kept with the matches, since a contestant is compared with many others.
    """
    key = num_draws, seed, together
    if key not in matches.draws:
        matches.draws[key] = matches.drawn_aps(_weights(matches.num_images, *key))
    return matches.draws[key]


@lru_cache(maxsize=1)  # contestants have the same images, one after the other
def _weights(num_images: int, num_draws: int, seed: int, together: int) -> Array:
    """How often each image counts: once, then as it was drawn, shape (1 + num_draws, num_images)."""
    number = num_images // together
    places = np.random.default_rng([seed, 0]).integers(number, size=(num_draws, number))
    counts = np.stack([np.ones(number), *(np.bincount(row, minlength=number) for row in places)])
    return counts.repeat(together, axis=1)


def sentence(first: str, second: str, found: Interval) -> str:
    """The difference in words, in AP from 0 to 100."""
    value, low, high = (100 * figure for figure in found[:3])
    if not found.is_difference:
        return f'no difference shown between {first} and {second}: {value:+.1f} AP (95 %: {low:+.1f} to {high:+.1f})'
    if value < 0:
        first, second, value, low, high = second, first, -value, -high, -low
    return f'{first} is better than {second} by {value:.1f} AP (95 %: {low:.1f} to {high:.1f})'


def expanded_tail(num_images: int) -> float:
    """Share of the draws to leave out on each side, less than 2.5 % where images are few; of two at least."""
    quantile = stats.t.ppf((1 + LEVEL) / 2, num_images - 1)
    return float(stats.norm.cdf(-math.sqrt(num_images / (num_images - 1)) * quantile))


def _image_ids(contestant: Contestant) -> set[tuple]:
    return {matches.image_ids for training in contestant.trainings for matches in training}


def _num_images(contestant: Contestant) -> int:
    return contestant.trainings[0][0].num_images


def _interval(values: Array, num_images: int, possible: tuple[float, float]) -> Interval:
    """Of the value of the data, and after it those of the draws."""
    draws = values[1:][~np.isnan(values[1:])]
    if num_images < FEWEST_IMAGES or not len(draws):
        low, high = possible
    else:
        tail = expanded_tail(num_images)
        low, high = np.quantile(draws, [tail, 1 - tail]).clip(*possible)
    return Interval(float(values[0]), float(low), float(high), float((draws > 0).mean()) if len(draws) else 0.5)
