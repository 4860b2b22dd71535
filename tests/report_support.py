"""Reports made up, for tests of what writes and shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from fastac.contract import Episode, Episodes, Phases, Report

LOSSES = {
    "policy_loss": 0.25,
    "value_loss": 0.5,
    "entropy": 0.75,
    "explained_variance": math.nan,
    "grad_norm": 1.5,
    "learning_rate": 0.125,
    "approx_kl": 0.0625,
    "clip_fraction": 0.375,
    "clip_range": 0.25,
    "loss": 0.875,
}


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def collected(episodes: tuple[Episode, ...]) -> Episodes:
    returns, lengths = [e.return_ for e in episodes], [e.length for e in episodes]
    return Episodes(np.array(returns, np.float64), np.array(lengths, np.int64))


def make_report(iteration: int, finished: tuple[Episode, ...] = (), seconds: float = 0.5) -> Report:
    steps = 100 * iteration
    return Report(
        iteration,
        steps,
        4 * steps,
        2 * iteration,
        3 * iteration,
        collected(finished),
        seconds * iteration,
        Phases(),
        LOSSES,
    )


def read_lines(path: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(iteration: int) -> dict[str, float | int | None]:
    return {"iteration": iteration, "env_steps": 100 * iteration}


def with_extras(iteration: int, **extras: list[float]) -> Report:
    report = make_report(iteration)
    report.finished.extras = {key.replace("_of_", "/"): np.array(values) for key, values in extras.items()}
    return report
