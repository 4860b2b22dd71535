"""The synchronous trainer: collect, learn, report; alone, or in step with other workers."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, fields, replace
from time import perf_counter

import numpy as np

from fastac.contract import (
    EnvFailure,
    Episodes,
    Phases,
    Report,
    StateTree,
    WorkerFailure,
    read_amount,
    read_branch,
    read_count,
)
from fastac.workers.sync_workers import Crew, NoCrew
from fastac.workers.worker import Pair


class SyncTrainer:
    """Runs a pair, and the crew beside it, and reports every iteration.

    Attributes:
        iteration: iterations so far.
        env_steps: valid transitions so far, of all workers.
    """

    def __init__(self, total_env_steps: int, frame_skip: int, pair: Pair, crew: Crew | NoCrew) -> None:
        """Take the parts; see `fastac.build`."""
        self._budget, self._frame_skip = total_env_steps, frame_skip
        self._pair, self._crew = pair, crew
        self.iteration = self._episodes = self.env_steps = 0
        self._phases = Phases()
        self._train_wall_s = 0.0

    def run(self) -> Generator[Report, None, None]:
        """Yield one report per iteration until the budget of environment steps is spent.

        The time that the consumer keeps a report is not training time. Between two reports the state
        is consistent: that is when to save it.

        Raises:
            EnvFailure: an environment failed or returned something not finite.
            WorkerFailure: a worker raised, died or hung; parameters are the last good ones, but for a worker that
                was killed within a step: then a part of them is a step ahead.
            NonFiniteError: a loss or gradient is not finite; parameters are the last good ones.
        """
        while self.env_steps < self._budget:
            begin = perf_counter()
            finished, losses = self._iterate(self.env_steps / self._budget)
            self.iteration += 1
            self._episodes += len(finished)
            self.env_steps += self._pair.learner.rows
            self._train_wall_s += perf_counter() - begin
            yield Report(
                iteration=self.iteration,
                env_steps=self.env_steps,
                frames=self.env_steps * self._frame_skip,
                updates=self._pair.learner.updates,
                episodes=self._episodes,
                finished=finished,
                train_wall_s=self._train_wall_s,
                phases=self._timed_phases(),
                losses=losses,
            )

    def halt(self) -> Report | None:
        """Return None: between two reports nothing is done."""
        return None

    def _iterate(self, done_fraction: float) -> tuple[Episodes, dict[str, float]]:
        try:
            self._crew.begin(done_fraction)
            own = self._pair.collect(self._phases)
            losses = self._pair.learn(done_fraction, self._phases)
            return _join([own, *self._crew.finished()]), losses
        except (EnvFailure, WorkerFailure) as error:
            where = f"in iteration {self.iteration + 1}, after {self.env_steps} environment steps"
            raise type(error)(f"{str(error).removesuffix('.')}, {where}") from error.__cause__ or error

    def _timed_phases(self) -> Phases:
        known = self._phases.env_s + self._phases.act_s + self._phases.advantage_s + self._phases.update_s
        return replace(self._phases, other_s=self._train_wall_s - known)

    def get_state(self, with_envs: bool = True) -> StateTree:
        """The pair's state and the counters; the crew's is apart."""
        return {
            **self._pair.get_state(with_envs),
            "phases": asdict(self._phases),
            "train_wall_s": self._train_wall_s,
            "iteration": self.iteration,
            "episodes": self._episodes,
            "env_steps": self.env_steps,
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments continue too, or begin episodes anew."""
        phases = read_branch(state, "phases")
        self._phases = Phases(**{field.name: read_amount(phases, field.name) for field in fields(Phases)})
        self._train_wall_s = read_amount(state, "train_wall_s")
        self.iteration = read_count(state, "iteration")
        self._episodes = read_count(state, "episodes")
        self.env_steps = read_count(state, "env_steps")
        return self._pair.set_state(state)


def _join(parts: list[Episodes]) -> Episodes:
    if len(parts) == 1:
        return parts[0]
    keys = {key: None for part in parts for key in part.extras}  # in order
    extras = {key: np.concatenate([part.extras[key] for part in parts if key in part.extras]) for key in keys}
    return Episodes(np.concatenate([p.return_ for p in parts]), np.concatenate([p.length for p in parts]), extras)
