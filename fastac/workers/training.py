"""A run's training: the same interface for one process or many."""

from __future__ import annotations

from typing import Protocol

from fastac.contract import Asynchrony, Report, StateTree, Trainer, VecEnv
from fastac.models import ActorCritic
from fastac.rollout import Rollout
from fastac.workers.worker import WorkerInfo


class Training(Protocol):
    """A run's training, assembled by `fastac.build`."""

    @property
    def envs(self) -> VecEnv:
        """Environments of this process; closed if only other processes step any. They have the run's spaces."""

    @property
    def info(self) -> WorkerInfo:
        """How a worker's environments are batched, and its memory."""

    @property
    def model(self) -> ActorCritic:
        """The policy; with A3C its parameters are those of the last `get_state` or `pause`."""

    @property
    def trainer(self) -> Trainer:
        """Trains and reports."""

    @property
    def rollouts(self) -> list[Rollout]:
        """The latest rollouts of this process, one of each shard; none if only other processes collect."""

    @property
    def asynchrony(self) -> Asynchrony | None:
        """How workers have interleaved, or None for in-step workers."""

    @property
    def waiting(self) -> list[float]:
        """Share of this process's training time that each in-step worker has waited for the others, by rank.

        Empty if no worker waits for another.
        """

    def action_std(self) -> float | None:
        """See `ActorCritic.action_std`; computed with the current parameters."""

    def pause(self) -> Report | None:
        """Let workers wait until the trainer's next report, and keep `model` as it is.

        Returns:
            The progress since the last report; None if there was none, such as of workers in step, which wait anyway.
        """

    def begin_with(self, model: StateTree, reward_moments: StateTree) -> None:
        """Begin with the state of another run's model, and with the statistics of its rewards if there are any.

        Call it before the first report. Everything else stays as it was built; episodes begin with a reset.
        """

    def get_state(self) -> StateTree:
        """Return everything needed to continue training."""

    def get_shards(self) -> StateTree:
        """Return the states of this host's shards, by their numbers; empty for A3C."""

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments continue too."""

    def rest(self) -> bool:
        """End workers that wait for commands; return whether there were any. If so, training cannot continue."""

    def drop_workers(self) -> None:
        """Kill the workers without a final state, possibly inside an iteration; their environment states are lost."""

    def close(self) -> None:
        """End the workers and close the environments; safe to call twice."""
