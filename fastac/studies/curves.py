"""Learning curves of runs, from their records, and the scores by which a sweep compares them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastac.studies.options import Objective

Floats: TypeAlias = NDArray[np.float64]

# What a run that does not come to its target counts as, in seconds: longer than any that does. Samplers and pruners
# only compare.
NEVER_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Curve:
    """The evaluations of one run; each `[evaluations]`.

    Attributes:
        env_steps: environment steps of training, rising.
        seconds: of training.
        returns: mean returns.
    """

    env_steps: Floats
    seconds: Floats
    returns: Floats

    @property
    def size(self) -> int:
        """How many evaluations there are."""
        return len(self.returns)


def read_curve(run_dir: Path) -> Curve:
    """Read the evaluations of a run that may still be in progress."""
    rows: list[tuple[float, float, float]] = []
    path = run_dir / "evaluations.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break  # a partial line, of a process that was killed
        if None not in (row["env_steps"], row["wall_s"], row["mean_return"]):
            rows.append((row["env_steps"], row["wall_s"], row["mean_return"]))
    return Curve(*np.array(rows, dtype=np.float64).reshape(-1, 3).T)


def check_objective(objective: Objective, target: float | None) -> None:
    """Refuse an objective that does not fit the target.

    Raises:
        ValueError: see above.
    """
    if objective == "seconds" and target is None:
        raise ValueError("objective is 'seconds', which needs a return to come to: give --until-return.")
    if objective != "seconds" and target is not None:
        raise ValueError(
            f"until_return is {target:g} with objective {objective!r}, expected objective 'seconds': runs that end "
            "early cannot be compared by their returns."
        )


def score(curve: Curve, objective: Objective, target: float | None) -> float:
    """Return the score of a curve, higher is better.

    - final: the mean return of the last evaluation.
    - area: the area under the curve of mean returns, divided by its env steps, which makes it a mean return. Before
      the first evaluation the curve is flat.
    - seconds: minus the seconds of training until the first evaluation of at least `target`; `NEVER_S` without one.

    Args:
        curve: at least one evaluation.
        objective: which of them.
        target: a mean return, for seconds.
    """
    if objective == "final":
        return float(curve.returns[-1])
    if objective == "area":
        steps = np.concatenate([[0.0], curve.env_steps])
        returns = np.concatenate([curve.returns[:1], curve.returns])
        return float(np.trapezoid(returns, steps) / steps[-1])
    assert target is not None
    reached = np.flatnonzero(curve.returns >= target)
    return -float(curve.seconds[reached[0]]) if len(reached) else -NEVER_S


def score_so_far(curve: Curve, objective: Objective) -> float:
    """Return what the pruner compares of a run in progress: for seconds its latest mean return."""
    return score(curve, "area" if objective == "area" else "final", None)


def tell_score(value: float, objective: Objective) -> str:
    """Return a score in words."""
    if objective != "seconds":
        return f"{value:,.1f}"
    return "never" if value <= -NEVER_S else f"{-value:,.2f} s"
