"""One row of the benchmark's table: two sides, their ratio, and what it is held against."""

from typing import NamedTuple

from benchmark_timing import Samples, paired_ratio


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
