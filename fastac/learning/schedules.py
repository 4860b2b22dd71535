"""How a number changes over a run: the learning rate, the entropy's weight, the clipping range."""

from __future__ import annotations

from fastac.config import Schedule


def anneal(schedule: Schedule, start: float, done_fraction: float) -> float:
    """Return `start`, or for a linear schedule what is left of it after `done_fraction` of the run."""
    return start if schedule == "constant" else start * max(0.0, 1.0 - done_fraction)
