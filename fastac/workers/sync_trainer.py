"""Synchronous training with one worker or several in-step workers: collect, learn, report."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, fields, replace
from time import perf_counter

import numpy as np

from fastac.contract import (
    EnvFailure,
    Episodes,
    Phases,
    Report,
    StateTree,
    VecEnv,
    WorkerFailure,
    read_amount,
    read_branch,
    read_count,
)
from fastac.models import ActorCritic, load_module
from fastac.rollout import Rollout
from fastac.workers.sync_workers import NoOtherWorkers, SyncWorkers
from fastac.workers.worker import Worker, WorkerInfo


class SyncTrainer:
    """Runs one iteration in all in-step workers and reports it. This process is worker 0.

    Attributes:
        iteration: iterations so far.
        env_steps: valid transitions so far, of all workers.
    """

    def __init__(
        self, total_env_steps: int, frame_skip: int, worker: Worker, others: SyncWorkers | NoOtherWorkers
    ) -> None:
        """Take the parts; see `fastac.build`."""
        self._budget, self._frame_skip = total_env_steps, frame_skip
        self._worker, self._others = worker, others
        self.iteration = self._episodes = self.env_steps = 0
        self._phases = Phases()
        self._train_wall_s = self._before_s = 0.0  # total, and in earlier processes of this run

    @property
    def trained_s(self) -> float:
        """Training wall-clock of this process, in seconds."""
        return self._train_wall_s - self._before_s

    def run(self) -> Generator[Report, None, None]:
        """Yield one report per iteration until the budget of environment steps is spent.

        Time between `yield` and the next call is not counted as training. The state is consistent then, so this is
        the time to save it.

        Raises:
            EnvFailure: an environment failed or returned a number that is not finite.
            WorkerFailure: a worker raised, died or hung; the parameters are the last good ones. If a worker was
                killed inside an optimiser step, parameters that workers share are partly updated and are not saved.
            NonFiniteError: a loss or gradient is not finite; the parameters are the last good ones.
        """
        while self.env_steps < self._budget:
            begin = perf_counter()
            finished, losses = self._iterate(self.env_steps / self._budget)
            self.iteration += 1
            self._episodes += len(finished)
            self.env_steps += self._worker.learner.rows
            self._train_wall_s += perf_counter() - begin
            yield Report(
                iteration=self.iteration,
                env_steps=self.env_steps,
                frames=self.env_steps * self._frame_skip,
                updates=self._worker.learner.updates,
                episodes=self._episodes,
                finished=finished,
                train_wall_s=self._train_wall_s,
                phases=self._timed_phases(),
                losses=losses,
            )

    def halt(self) -> Report | None:
        """Return None: in-step workers do nothing between reports."""
        return None

    def _iterate(self, done_fraction: float) -> tuple[Episodes, dict[str, float]]:
        try:
            self._others.begin(done_fraction)
            own = self._worker.collect(self._phases)
            losses = self._worker.learn(done_fraction, self._phases)
            return _join([own, *self._others.finished()]), losses
        except (EnvFailure, WorkerFailure) as error:
            where = f"in iteration {self.iteration + 1}, after {self.env_steps} environment steps"
            raise type(error)(f"{str(error).removesuffix('.')}, {where}") from error.__cause__ or error

    def _timed_phases(self) -> Phases:
        known = self._phases.env_s + self._phases.act_s + self._phases.advantage_s + self._phases.update_s
        return replace(self._phases, other_s=self._train_wall_s - known)

    def get_state(self, with_envs: bool = True) -> StateTree:
        """Return the state of worker 0 and the counters; `SyncWorkers.get_states` returns the other workers' states."""
        return {
            **self._worker.get_state(with_envs),
            "phases": asdict(self._phases),
            "train_wall_s": self._train_wall_s,
            "iteration": self.iteration,
            "episodes": self._episodes,
            "env_steps": self.env_steps,
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return True if the environments continue too, False if their episodes restart."""
        phases = read_branch(state, "phases")
        self._phases = Phases(**{field.name: read_amount(phases, field.name) for field in fields(Phases)})
        self._train_wall_s = self._before_s = read_amount(state, "train_wall_s")
        self.iteration = read_count(state, "iteration")
        self._episodes = read_count(state, "episodes")
        self.env_steps = read_count(state, "env_steps")
        return self._worker.set_state(state)


def _join(parts: list[Episodes]) -> Episodes:
    if len(parts) == 1:
        return parts[0]
    keys = {key: None for part in parts for key in part.extras}  # in order
    extras = {key: np.concatenate([part.extras[key] for part in parts if key in part.extras]) for key in keys}
    return Episodes(np.concatenate([p.return_ for p in parts]), np.concatenate([p.length for p in parts]), extras)


@dataclass(slots=True)
class SyncTraining:
    """In-step training as worker 0 (this process) sees it; see `Training`."""

    worker: Worker
    others: SyncWorkers | NoOtherWorkers
    trainer: SyncTrainer
    asynchrony: None = None

    @property
    def envs(self) -> VecEnv:
        """The environments of worker 0."""
        return self.worker.envs

    @property
    def model(self) -> ActorCritic:
        """The policy."""
        return self.worker.model

    @property
    def rollout(self) -> Rollout:
        """The rollout of worker 0."""
        return self.worker.rollout

    @property
    def info(self) -> WorkerInfo:
        """How the environments of worker 0 are batched, and its memory."""
        return self.worker.info

    @property
    def waiting(self) -> list[float]:
        """See `Training`."""
        return [waited_s / max(self.trainer.trained_s, 1e-9) for waited_s in self.others.waited_s]

    def action_std(self) -> float | None:
        """See `ActorCritic.action_std`."""
        return self.model.action_std()

    def get_state(self) -> StateTree:
        """Return everything needed to continue training."""
        workers = self.others.get_states()
        # If worker env states are lost, skip ours too: all environments restart, and ours may be broken.
        trainer = self.trainer.get_state(with_envs=workers is not None)
        return {
            "model": self.model.state_dict(),
            "reward_normalizer": self.worker.reward_normalizer.state_dict(),
            "trainer": trainer,
            "workers": {str(rank): state for rank, state in enumerate(workers or [], start=1)},
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments of worker 0 continue too."""
        trainer, saved = read_branch(state, "trainer"), read_branch(state, "workers")
        common = {"model": state["model"], "learner": trainer["learner"]}
        lost = {"envs": None, "reward_normalizer": state["reward_normalizer"]}
        self.others.set_states(
            [
                {**common, **(read_branch(saved, str(rank)) if str(rank) in saved else lost)}
                for rank in range(1, self.others.group.size)
            ]
        )
        load_module(self.model, read_branch(state, "model"))
        load_module(self.worker.reward_normalizer, read_branch(state, "reward_normalizer"))
        return self.trainer.set_state(trainer)

    def rest(self) -> bool:
        """End the workers; return whether there were any."""
        return self.others.rest()

    def drop_workers(self) -> None:
        """Kill the workers without a final state; they cannot finish their iteration. Environment states are lost."""
        self.others.close()

    def close(self) -> None:
        """End the workers and close the environments."""
        self.others.close()
        self.envs.close()
