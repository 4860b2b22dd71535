"""The part of a run's checkpoint beyond the trainer's own state, and functions that read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from fastac.contract import Episodes, Phases, Report, StateTree, read_amount, read_branch, read_count, read_number

# Why a run ended: a spent budget, a reached target, or a signal.
Ending: TypeAlias = Literal["env_steps", "minutes", "until_return", "signal"]


@dataclass(slots=True)
class Progress:
    """Progress of a session beyond the trainer's state; saved in checkpoints.

    Attributes:
        best_mean_return: mean return of the best evaluation so far.
        best_env_steps: environment steps at that evaluation.
        solved_wall_s: training seconds until the target was reached.
        solved_env_steps: environment steps until the target was reached.
        eval_wall_s: seconds spent in evaluations.
        eval_spent: cost of the evaluations in steps; see `EvaluationSchedule`.
        eval_latest: env steps at the latest intermediate evaluation.
        eval_mean_length: mean episode length of that evaluation.
        total_wall_s: wall-clock seconds of the whole run.
    """

    best_mean_return: float | None = None
    best_env_steps: int | None = None
    solved_wall_s: float | None = None
    solved_env_steps: int | None = None
    eval_wall_s: float = 0.0
    eval_spent: float = 0.0
    eval_latest: int = 0
    eval_mean_length: float = 0.0
    total_wall_s: float = 0.0

    @property
    def solved(self) -> bool:
        """Whether the target was reached."""
        return self.solved_env_steps is not None

    @classmethod
    def from_state(cls, state: StateTree) -> Progress:
        """Read the saved progress."""
        optional = ("best_mean_return", "best_env_steps", "solved_wall_s", "solved_env_steps")
        best, best_at, wall_s, steps = (state.get(name) for name in optional)
        return cls(
            best_mean_return=None if best is None else read_number(state, "best_mean_return"),
            best_env_steps=None if best_at is None else read_count(state, "best_env_steps"),
            solved_wall_s=None if wall_s is None else read_amount(state, "solved_wall_s"),
            solved_env_steps=None if steps is None else read_count(state, "solved_env_steps"),
            eval_wall_s=read_amount(state, "eval_wall_s"),
            eval_spent=read_amount(state, "eval_spent"),
            eval_latest=read_count(state, "eval_latest"),
            eval_mean_length=read_amount(state, "eval_mean_length"),
            total_wall_s=read_amount(state, "total_wall_s"),
        )


def wall_minutes_of(state: StateTree) -> float:
    """Return the wall-clock minutes that a run had taken when it was saved."""
    return read_amount(read_branch(state, "progress"), "total_wall_s") / 60.0


def env_steps_of(state: StateTree) -> int:
    """Return the environment steps of a saved run."""
    return read_count(read_branch(read_branch(state, "training"), "trainer"), "env_steps")


def last_report(trainer: StateTree, frame_skip: int) -> Report:
    """Return the report after which a trainer's state was saved, without the values of that iteration alone."""
    env_steps, train_wall_s = read_count(trainer, "env_steps"), read_amount(trainer, "train_wall_s")
    phases = Phases(**{name: read_amount(read_branch(trainer, "phases"), name) for name in _CLOCKED})
    return Report(
        iteration=read_count(trainer, "iteration"),
        env_steps=env_steps,
        frames=env_steps * frame_skip,
        updates=read_count(read_branch(trainer, "learner"), "updates"),
        episodes=read_count(trainer, "episodes"),
        finished=Episodes(np.empty(0), np.empty(0, dtype=np.int64)),
        train_wall_s=train_wall_s,
        phases=replace(phases, other_s=train_wall_s - sum(asdict(phases).values())),
    )


_CLOCKED = ("env_s", "act_s", "advantage_s", "update_s")  # the measured phases; `other_s` is the rest
