"""How a sweep searches, for Python and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from fastac.config.values import JsonValue, check, check_choice

Objective: TypeAlias = Literal["final", "area", "seconds"]
PrunerName: TypeAlias = Literal["median", "halving", "none"]


@dataclass(frozen=True)
class SweepOptions:
    """How long a sweep searches, and how."""

    trials: int = 100
    """Number of trials at most."""
    minutes: float | None = None
    """Minutes of the search at most, those before an interruption included; the fresh seeds come on top."""
    seeds_per_trial: int = 3
    """Seeds of each trial; their mean counts."""
    objective: Objective = "final"
    """Score: the final return, the area under the learning curve, or the seconds to --until-return."""
    pruner: PrunerName = "median"
    """What ends trials early: the median of the others, successive halving, or nothing."""
    space: Path | Mapping[str, JsonValue] | None = None
    """TOML or JSON file that changes the search space, see the guide on sweeps."""
    confirm_seeds: int = 5
    """Fresh seeds for the best five settings, and for those without the sweep; 0: none."""
    storage: str | None = None
    """URL of a database that several machines share. Default: SQLite in the run directory."""
    study: str | None = None
    """Name in that database, the same on every machine. Default: made of environment and algorithm."""

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            ValueError: one of them is out of range.
        """
        check(self.trials >= 1, "trials", self.trials, "at least 1")
        check(self.minutes is None or self.minutes > 0.0, "minutes", self.minutes, "above 0, or None")
        check(self.seeds_per_trial >= 1, "seeds_per_trial", self.seeds_per_trial, "at least 1")
        check_choice("objective", self.objective, Objective)
        check_choice("pruner", self.pruner, PrunerName)
        check(self.confirm_seeds >= 0, "confirm_seeds", self.confirm_seeds, "at least 0")
        if self.study is not None and self.storage is None:
            raise ValueError(f"study is {self.study!r} without a storage that it is the name in: give both.")
