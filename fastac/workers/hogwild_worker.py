"""The process of an A3C worker: it trains until the budget is spent, and reports how training ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import TypeAlias

import torch

from fastac.contract import ActionArray, BoolArray, Extras, ObsArray, StepRow, VecEnv
from fastac.learning.optimizer import HogwildOptimizer
from fastac.pickling import Pickled
from fastac.processes import Parent
from fastac.workers.shared_counters import SharedCounters, WorkerCounters
from fastac.workers.statistics import copy_statistics
from fastac.workers.waiting import wait_until
from fastac.workers.worker import Worker

_GRACE_S = 2.0  # time that a worker has to end in order after the first process has ended


class HogwildWorker:
    """A worker whose parameters and statistics are copies of the shared ones.

    Attributes:
        worker: collects and learns.
    """

    def __init__(self, worker: Worker, optimizer: HogwildOptimizer, counters: SharedCounters) -> None:
        """Take the parts; see `fastac.build`."""
        self.worker, self._optimizer, self._counters = worker, optimizer, counters

    def begin(self) -> None:
        """Copy the current shared parameters and statistics."""
        self._optimizer.copy()
        copy_statistics(self._counters, self.worker.model, self.worker.shards[0].reward_normalizer)


class Done:
    """The message of a worker that has ended in order."""


# Builds the worker in its process; it is sent there, so it must be picklable.
MakeHogwildWorker: TypeAlias = Callable[[SharedCounters, WorkerCounters, AbstractContextManager[object]], HogwildWorker]


def work(
    make: Pickled[MakeHogwildWorker],
    counters: SharedCounters,
    worker: int,
    lock: AbstractContextManager[object],
    budget: int,
    parent: Parent,
) -> None:
    """Run worker number `worker` until it is done and the first process closes the pipe."""
    torch.set_num_threads(1)
    has_first_left = parent.listen(lambda _: None, _GRACE_S)  # nothing is ever sent to a worker
    row = WorkerCounters(counters, worker)
    part = make.load()(counters, row, lock)
    with closing(part.worker):
        parent.send(part.worker.info)
        _wait_to_train(row, has_first_left)
        part.begin()
        _train(part.worker, row, budget, has_first_left)
    parent.send(Done())
    has_first_left.wait()


def _train(worker: Worker, row: WorkerCounters, budget: int, has_first_left: threading.Event) -> None:
    """Collect and learn until the budget is spent, the stop flag is set, or the first process has ended."""
    phases = row.phases()
    while True:
        _wait_to_train(row, has_first_left)
        if row.shall_stop or has_first_left.is_set():
            return
        env_steps = row.env_steps()
        if env_steps >= budget:
            return
        finished = worker.collect(phases)
        losses = worker.learn(env_steps / budget, phases)
        row.note(finished, worker.learner.rows, losses, phases)


def _wait_to_train(row: WorkerCounters, has_first_left: threading.Event) -> None:
    """Wait, idle, while nothing is to be trained; return at once where training is to end."""
    row.tell_idle(False)
    # Look after saying so: a pause that has just begun may have counted on an idle worker.
    while not (row.may_go or row.shall_stop or has_first_left.is_set()):
        row.tell_idle(True)
        wait_until(lambda: row.may_go or row.shall_stop or has_first_left.is_set(), lambda _: None)
        row.tell_idle(False)


class BeatingEnvs:
    """A `VecEnv` that counts every step as a sign of life; this costs 0.2 us per step."""

    def __init__(self, envs: VecEnv, row: WorkerCounters) -> None:
        """Wrap `envs`; `close` closes them too."""
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
