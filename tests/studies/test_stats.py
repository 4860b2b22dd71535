"""Averages by hand, and intervals that cover what they should."""

import numpy as np
import pytest

from fastac.studies.stats import bootstrap_interval, interquartile_mean


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0], 3.0),
        ([100.0, 2.0, 3.0, -50.0], 2.5),
        ([0.0, 1.0, 2.0, 3.0, 100.0], 2.0),
        ([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 999.0], 4.5),
    ],
)
def test_the_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected)


def test_an_interval_by_hand():
    # The mean of two draws from {0, 1} is 0, 0.5 or 1, with chances 1/4, 1/2 and 1/4.
    assert bootstrap_interval(np.array([0.0, 1.0]), np.mean) == (0.0, 1.0)
    assert bootstrap_interval(np.array([3.0, 3.0]), np.mean) == (3.0, 3.0)


def test_a_curve_has_an_interval_at_every_point():
    curves = np.random.default_rng(0).normal([0.0, 5.0, 10.0], size=(10, 3))  # [seeds, points]
    low, high = bootstrap_interval(curves, np.mean)
    assert low.shape == high.shape == (3,)
    assert (low < curves.mean(axis=0)).all() and (curves.mean(axis=0) < high).all()


def test_the_same_scores_give_the_same_interval():
    scores = np.random.default_rng(0).normal(size=10)
    assert bootstrap_interval(scores, np.mean) == bootstrap_interval(scores.copy(), np.mean)


@pytest.mark.parametrize(
    ("statistic", "size", "least", "most"), [(np.mean, 10, 0.87, 0.93), (interquartile_mean, 40, 0.91, 0.96)]
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(statistic, size, least, most):
    scores = np.random.default_rng(1).normal(size=(size, 500))
    low, high = bootstrap_interval(scores, statistic, resamples=500)
    assert least <= np.mean((low <= 0.0) & (high >= 0.0)) <= most
