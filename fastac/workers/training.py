"""A run's training: the same interface for one process or many."""

from __future__ import annotations

from typing import Protocol

from fastac.contract import Asynchrony, StateTree, Trainer, VecEnv
from fastac.models import ActorCritic
from fastac.rollout import Rollout
from fastac.workers.worker import WorkerInfo


class Training(Protocol):
    """A run's training, assembled by `fastac.build`."""

    @property
    def envs(self) -> VecEnv:
        """Environments of this process, closed ones where only others step any; their spaces are the run's."""

    @property
    def info(self) -> WorkerInfo:
        """How a worker's environments are batched, and its memory."""

    @property
    def model(self) -> ActorCritic:
        """The policy, as of the last `get_state` where workers learn beside this process."""

    @property
    def trainer(self) -> Trainer:
        """Trains and reports."""

    @property
    def rollout(self) -> Rollout | None:
        """This process's latest rollout, or None where only others collect any."""

    @property
    def asynchrony(self) -> Asynchrony | None:
        """How workers have interleaved, or None where they are in step."""

    @property
    def waiting(self) -> list[float]:
        """Share of this process's training time that each worker in step has waited for the others, by rank.

        Empty where no worker waits for another.
        """

    def action_std(self) -> float | None:
        """See `ActorCritic.action_std`; of this moment."""

    def get_state(self) -> StateTree:
        """Everything that training continues from."""

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments continue too."""

    def rest(self) -> bool:
        """End the workers that wait for commands; return whether there were any, so that training cannot go on."""

    def drop_workers(self) -> None:
        """Give up the environments, and the workers who may be in the middle of an iteration."""

    def close(self) -> None:
        """End the workers and close the environments; safe to call twice."""
