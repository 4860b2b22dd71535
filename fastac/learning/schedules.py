"""Schedules of numbers over a run: learning rate, entropy coefficient, clipping range."""

from __future__ import annotations

from fastac.config import Schedule


def anneal(schedule: Schedule, start: float, done_fraction: float) -> float:
    """Return `start`, or for a linear schedule `start` times the remaining fraction of the run."""
    return start if schedule == "constant" else start * max(0.0, 1.0 - done_fraction)
