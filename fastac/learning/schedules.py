"""Schedules of numbers over a run: learning rate, entropy coefficient, clipping range."""

from __future__ import annotations

from fastac.config import RateSchedule

_LEAST_RATE, _MOST_RATE = 1e-5, 1e-2  # of an adaptive learning rate


def anneal(schedule: RateSchedule, start: float, done_fraction: float) -> float:
    """Return `start`, or for a linear schedule `start` times the remaining fraction of the run."""
    return start * max(0.0, 1.0 - done_fraction) if schedule == "linear" else start


def adapt_rate(rate: float, kl: float, target_kl: float) -> float:
    """Return the learning rate that brings the KL of an epoch, `kl`, closer to the target.

    The rule of rsl_rl and rl_games (Makoviychuk et al. 2021, arXiv 2108.10470): within a factor 2 of the target the
    rate stays; else it changes by a factor 1.5, between 1e-5 and 1e-2.
    """
    if kl > 2.0 * target_kl:
        return max(rate / 1.5, _LEAST_RATE)
    return min(rate * 1.5, _MOST_RATE) if kl < target_kl / 2.0 else rate
