"""What the gate makes of times: intervals and verdicts, on times drawn from a model of a machine."""

import math

import numpy as np
import pytest

from fastac.tools.gate.measure import QUICK
from fastac.tools.gate.statistics import Comparison, _student, compare

MARGIN = 0.025


def draw(rng, pairs, slowdown, layout, slices=12):
    """Draw seconds of both sides `[P, S]`.

    Every process has a speed of its own (`layout`, as a standard deviation). Both drift together, each slice has some
    noise, and every seventh a burst from a neighbour.
    """
    drift = np.cumsum(rng.normal(0.0, 0.01, (pairs, slices)), axis=1)

    def side(factor):
        process = rng.normal(0.0, layout, (pairs, 1))
        burst = (rng.random((pairs, slices)) < 1 / 7) * rng.exponential(0.2, (pairs, slices))
        return factor * np.exp(drift + process + burst + rng.normal(0.0, 0.015, (pairs, slices)))

    return side(1.0), side(1.0 + slowdown)


def judge(rng, slowdown, layout):
    """Go through the stages of a quick gate; return the last comparison."""
    base, head = draw(rng, QUICK.stages[-1], slowdown, layout)
    for pairs in QUICK.stages:
        found = compare("one", "update", base[:pairs], head[:pairs], MARGIN)
        if not found.seems_slower:
            break
    return found


@pytest.mark.parametrize(
    ("slowdown", "layout", "least", "most"),
    [
        (0.0, 0.01, 0, 0),
        (0.0, 0.03, 0, 0),
        (0.02, 0.01, 0, 3),  # within the margin
        (0.06, 0.01, 38, 40),
        (0.06, 0.03, 26, 40),  # processes that differ by as much as on a machine with eight times its load
        (0.10, 0.01, 40, 40),
        (0.10, 0.03, 39, 40),
    ],
)
def test_of_forty_runs_so_many_are_slower(slowdown, layout, least, most):
    rng = np.random.default_rng(1)
    assert least <= sum(judge(rng, slowdown, layout).slower for _ in range(40)) <= most


def test_what_is_faster_is_told_too():
    base, head = draw(np.random.default_rng(0), 8, -0.10, 0.01)
    found = compare("one", "update", base, head, MARGIN)
    assert found.faster and not found.slower and not found.seems_slower
    assert found.ratio == pytest.approx(0.9, abs=0.02)


def test_nine_intervals_of_ten_hold_the_truth():
    rng = np.random.default_rng(2)
    found = [compare("one", "update", *draw(rng, 6, 0.05, 0.02), MARGIN) for _ in range(100)]
    assert 84 <= sum(c.lower <= 1.05 <= c.upper for c in found) <= 98


def test_processes_are_what_is_drawn_anew_not_slices():
    """Many slices of one lucky process prove nothing."""
    head = np.ones((4, 50)) * np.array([1.0, 1.0, 1.0, 1.4])[:, None]
    found = compare("one", "update", np.ones((4, 50)), head, MARGIN)
    assert found.ratio == pytest.approx(1.4**0.25)
    assert found.lower < 1.0 and not found.slower


def test_bursts_and_a_slow_minute_do_not_reach_the_ratio():
    base = np.ones((4, 12))
    base[:, 6:] *= 2.0  # a slow minute is one of both sides
    head = base.copy()
    head[:, ::4] *= 5.0  # bursts in a quarter of HEAD's slices
    assert compare("one", "update", base, head, MARGIN).ratio == 1.0


def test_the_same_times_give_the_same_interval():
    times = draw(np.random.default_rng(3), 4, 0.0, 0.02)
    assert compare("one", "update", *times, MARGIN) == compare("one", "update", *times, MARGIN)


@pytest.mark.parametrize(
    ("lower", "upper", "slower", "faster"),
    [
        (1.026, 1.2, True, False),
        (1.024, 1.2, False, False),
        (0.9, 0.975, False, True),
        (0.9, 0.98, False, False),
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_the_margin(lower, upper, slower, faster):
    found = Comparison("one", "update", 1.0, 1.0, math.sqrt(lower * upper), lower, upper, MARGIN, 8)
    assert (found.slower, found.faster) == (slower, faster)


def test_what_it_sees_is_the_margin_and_the_noise():
    assert Comparison("one", "update", 1.0, 1.0, 1.01, 0.98, 1.04, MARGIN, 8).sees == pytest.approx(0.055)


def test_students_quantiles_are_those_of_the_tables():
    for freedom, quantile in ((2, 2.920), (3, 2.353), (7, 1.895), (13, 1.771), (10**6, 1.645)):
        assert _student(freedom) == pytest.approx(quantile, rel=0.015)
