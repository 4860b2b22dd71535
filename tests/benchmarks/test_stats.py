"""Averages by hand, and intervals that cover what they should."""

import numpy as np
import pytest

from benchmarks.experiments.stats import bootstrap_interval, interquartile_mean, mean


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0], 3.0),
        ([0.0, 3.0, 30.0], (0.0 + 4 * 3.0 + 30.0) / 6),  # a quarter of each outer third is inside
        ([100.0, 2.0, 3.0, -50.0], 2.5),
        ([0.0, 1.0, 2.0, 3.0, 100.0], (0.75 * 1.0 + 2.0 + 0.75 * 3.0) / 2.5),
        ([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 999.0], 4.5),
    ],
)
def test_the_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected)


def test_statistics_are_of_the_last_axis():
    scores = np.array([[1.0, 2.0, 3.0, 10.0], [0.0, 0.0, 4.0, 4.0]])
    np.testing.assert_allclose(mean(scores), [4.0, 2.0])
    np.testing.assert_allclose(interquartile_mean(scores), [2.5, 2.0])


def test_an_interval_by_hand():
    # The mean of two draws from {0, 1} is 0, 0.5 or 1, with chances 1/4, 1/2 and 1/4.
    assert bootstrap_interval(np.array([0.0, 1.0]), mean) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), mean, level=0.4) == (0.5, 0.5)
    assert bootstrap_interval(np.array([3.0]), mean) == (3.0, 3.0)


def test_seeds_are_drawn_within_their_stratum():
    # Were they drawn from all, a resample could be of the second row alone.
    assert bootstrap_interval(np.array([[0.0, 0.0], [100.0, 100.0]]), mean) == (50.0, 50.0)


def test_the_same_scores_give_the_same_interval():
    scores = np.random.default_rng(0).normal(size=10)
    assert bootstrap_interval(scores, mean) == bootstrap_interval(scores, mean)
    assert bootstrap_interval(scores, mean) != bootstrap_interval(scores, mean, seed=1)


@pytest.mark.parametrize(
    ("statistic", "size", "least", "most"), [(mean, 10, 0.87, 0.93), (interquartile_mean, 40, 0.91, 0.96)]
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(statistic, size, least, most):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        low, high = bootstrap_interval(rng.normal(size=size), statistic, resamples=500)
        covered += low <= 0.0 <= high
    assert least <= covered / 500 <= most


@pytest.mark.parametrize("scores", [[], [1.0, np.nan], [[[1.0]]]])
def test_what_has_no_interval_is_told(scores):
    with pytest.raises(ValueError, match="expected finite numbers"):
        bootstrap_interval(np.array(scores), mean)
