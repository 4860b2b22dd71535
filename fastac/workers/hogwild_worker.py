"""What an A3C worker does in its process: train until the budget is spent, and say how that ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol, TypeAlias, cast

import torch

from fastac.contract import ActionArray, BoolArray, Extras, ObsArray, StepRow, VecEnv
from fastac.processes import follow, ignore_signals, to_failed, unpickled
from fastac.workers.shared_counters import Board, BoardRow
from fastac.workers.shared_group import wait_until
from fastac.workers.worker import Pair

_GRACE_S = 2.0  # that a worker has to end in order after the first process has gone


class HogwildWorker(Protocol):
    """What a worker process runs."""

    pair: Pair

    def facts(self) -> Facts:
        """What the first process wants to know of it."""

    def begin(self) -> None:
        """Take over what the board holds when training begins, or goes on."""

    def close(self) -> None:
        """Close the environments."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a worker says when it is ready.

    Attributes:
        description: how its environments are batched.
        rollout_nbytes: memory of its rollout.
        activations_nbytes: memory besides it, see `WorkerParts`.
    """

    description: str
    rollout_nbytes: int
    activations_nbytes: int


class Done:
    """What a worker sends when it has ended in order."""


# Builds in the worker's process what it runs; sent there, so it must be picklable.
MakeHogwildWorker: TypeAlias = Callable[[Board, BoardRow, AbstractContextManager[object]], HogwildWorker]


def work(
    make: bytes,
    board: Board,
    worker: int,
    lock: AbstractContextManager[object],
    budget: int,
    pipe: Connection,
) -> None:
    """Live as worker number `worker`, until it is done and the first process has closed the pipe."""
    ignore_signals()
    torch.set_num_threads(1)
    has_first_left = follow(pipe, lambda _: None, _GRACE_S)  # nothing is ever sent to a worker
    with suppress(OSError):  # the first process has gone
        try:
            row = BoardRow(board, worker)
            with closing(cast(MakeHogwildWorker, unpickled(make))(board, row, lock)) as part:
                pipe.send(part.facts())
                wait_until(lambda: row.may_go or row.shall_stop or has_first_left.is_set(), lambda _: None)
                part.begin()
                _train(part.pair, row, budget, has_first_left)
            pipe.send(Done())
        except Exception as error:
            pipe.send(to_failed(error))
    has_first_left.wait()


def _train(pair: Pair, row: BoardRow, budget: int, has_first_left: threading.Event) -> None:
    """Collect and learn until the budget is spent, or somebody says stop."""
    phases = row.phases()
    while not (row.shall_stop or has_first_left.is_set()):
        env_steps = row.env_steps()
        if env_steps >= budget:
            return
        finished = pair.collect(phases)
        losses = pair.learn(env_steps / budget, phases)
        row.note(finished, pair.learner.rows, losses, phases)


class BeatingEnvs:
    """A `VecEnv` that tells the board of every step; 0.2 us each."""

    def __init__(self, envs: VecEnv, row: BoardRow) -> None:
        """Wrap `envs`, which are this object's to close."""
        self._beat, self._step, self._envs = row.beat, envs.step, envs
        self.num_envs, self.description = envs.num_envs, envs.description
        self.frame_skip, self.frame_stack = envs.frame_skip, envs.frame_stack
        self.max_episode_steps, self.cautions = envs.max_episode_steps, envs.cautions
        self.single_observation_space = envs.single_observation_space
        self.single_action_space = envs.single_action_space
        self._reset = envs.reset
        self.get_state, self.set_state, self.close = envs.get_state, envs.set_state, envs.close
        self.reseed, self.rest = envs.reseed, envs.rest

    @property
    def extras(self) -> Extras:
        """See `VecEnv`."""
        return self._envs.extras

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """See `VecEnv`."""
        self._beat()
        self._reset(obs, start)
        self._beat()

    def step(self, action: ActionArray, row: StepRow) -> ObsArray | None:
        """See `VecEnv`."""
        self._beat()
        return self._step(action, row)
