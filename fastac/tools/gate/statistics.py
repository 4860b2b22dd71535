"""Whether one side takes longer than the other: the ratio, its interval, and the verdict.

A process's memory layout is part of its speed: equal code in two processes differs by some per cent for as long as they
live. So each side is measured in several processes, and these are what varies: the ratio is that of pairs of
processes, one of each side, that were measured in turn. Within a pair it is the median over neighbouring slices, which
bursts and slow minutes do not reach; over pairs it is the geometric mean. The interval is the bootstrap's: pairs are
drawn anew, then slices within them. Of few pairs it is too narrow, and widened by what Student's distribution is wider
than the normal one.

A part is slower if the whole interval lies beyond the margin. The margin is the difference that is not worth a
failure; the half of the interval is the noise of this machine and hour. Together they are what a slowdown must exceed
to be seen: `Comparison.sees`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.90  # of the interval; it errs on the side of "slower" in 5 %, before the margin
_NORMAL = 1.6448536269514722  # the normal distribution's quantile at that level
_DRAWS = 1000

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A part of a workload: HEAD's seconds over the base's.

    Attributes:
        workload: its name.
        part: its name.
        base_s: seconds of an iteration in the base, fast slices.
        head_s: seconds of an iteration in HEAD.
        ratio: how much longer HEAD takes: 1.1 is 10 % slower.
        lower: the lower end of the ratio's interval.
        upper: the upper end.
        margin: how much slower, or faster, does not matter.
        pairs: pairs of processes measured.
    """

    workload: str
    part: str
    base_s: float
    head_s: float
    ratio: float
    lower: float
    upper: float
    margin: float
    pairs: int

    @property
    def slower(self) -> bool:
        """Whether the interval lies beyond the margin."""
        return self.lower > 1.0 + self.margin

    @property
    def faster(self) -> bool:
        """Whether the interval lies beyond the margin on the other side."""
        return self.upper < 1.0 / (1.0 + self.margin)

    @property
    def seems_slower(self) -> bool:
        """Whether it is worth more processes."""
        return self.ratio > 1.0 + 0.8 * self.margin

    @property
    def sees(self) -> float:
        """The share of slowdown from which on this measurement fails."""
        return self.margin + self.ratio - self.lower


def compare(workload: str, part: str, base_s: FloatArray, head_s: FloatArray, margin: float) -> Comparison:
    """Compare seconds `[P, S]` of P pairs of processes, S slices each; equal places are neighbours in time."""
    ratios = np.log(head_s / base_s)
    middle = float(np.median(ratios, axis=1).mean())
    lower, upper = (middle + _widening(len(ratios)) * (end - middle) for end in _bootstrap(ratios))
    base, head = (float(np.quantile(seconds, 0.25, axis=1).mean()) for seconds in (base_s, head_s))
    low, ratio, high = np.exp([lower, middle, upper]).tolist()
    return Comparison(workload, part, base, head, ratio, low, high, margin, len(ratios))


def _bootstrap(ratios: FloatArray) -> tuple[float, float]:
    """Return the ends of the interval of the mean over pairs of the median over slices."""
    pairs, slices = ratios.shape
    generator = np.random.default_rng(0)  # the same numbers give the same verdict
    rows = generator.integers(0, pairs, (_DRAWS, pairs, 1))
    columns = generator.integers(0, slices, (_DRAWS, pairs, slices))
    means = np.median(ratios[rows, columns], axis=2).mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@cache
def _widening(pairs: int) -> float:
    """Return how much too narrow a bootstrap of so many pairs is."""
    assert pairs > 1, "one pair tells nothing of how processes differ"
    return float(_student(pairs - 1) / _NORMAL * (pairs / (pairs - 1)) ** 0.5)


def _student(freedom: int) -> float:
    """Return the upper end of `LEVEL` of Student's distribution, to 1 % from 2 degrees on (Cornish and Fisher)."""
    z = _NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    first, second, third = terms
    return float(z + first / freedom + second / freedom**2 + third / freedom**3)
