"""In-step worker processes: this module starts, commands, watches and ends them.

This process is worker 0. The other workers follow commands in shared memory; while they wait for one, they spin
briefly and then sleep. States and failures go through pipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TypeAlias

import numpy as np
import torch

from fastac.contract import (
    Episodes,
    Group,
    NonFiniteError,
    Phases,
    StateLeaf,
    StateTree,
    WorkerFailure,
    read_branch,
)
from fastac.pickling import UNSENDABLE, Pickled, pickled
from fastac.processes import CHILD_FAILURES, Child, Children, Parent, start, was_sent
from fastac.shared_memory import SharedArray
from fastac.workers.hosts import Hosts
from fastac.workers.shared_episodes import EpisodesReader, EpisodesWriter, SharedEpisodes
from fastac.workers.shared_group import GroupMemory, SharedGroup
from fastac.workers.waiting import fence, wait_until
from fastac.workers.worker import Worker

# Builds a worker in its process; it is sent there, so it must be picklable.
MakeWorker: TypeAlias = Callable[[Group], Worker]


class _Command(IntEnum):
    ITERATE = 1
    GET_STATE = 2
    SET_STATE = 3


@dataclass(frozen=True, slots=True)
class CommandMemory:
    """Memory by which worker 0 commands the other ones of K, and gets their finished episodes.

    Attributes:
        command: `[2]`, the number of commands given, and the latest command.
        done_fraction: `[1]`, share of the budget spent before the current iteration.
        episodes: finished episodes of workers 1 to K-1.
        num_episodes: `[K]`, finished episodes so far; 0 for worker 0.
    """

    command: SharedArray[np.int64]
    done_fraction: SharedArray[np.float64]
    episodes: SharedEpisodes
    num_episodes: SharedArray[np.int64]

    @classmethod
    def allocate(cls, size: int, max_episodes: int) -> CommandMemory:
        """Allocate for K = `size`; `max_episodes` is the most that a worker can finish in an iteration."""
        whole = np.dtype(np.int64)
        return cls(
            command=SharedArray((2,), whole),
            done_fraction=SharedArray((1,), np.dtype(np.float64)),
            episodes=SharedEpisodes.allocate(size, max_episodes),
            num_episodes=SharedArray((size,), whole, apart=True),
        )


class NoOtherWorkers:
    """Takes the place of `SyncWorkers` if a host has one worker."""

    _is_closed = False

    def begin(self, done_fraction: float) -> None:
        """Do nothing."""

    def finished(self) -> list[Episodes]:
        """Return an empty list."""
        return []

    def get_shards(self) -> StateTree | None:
        """Return no states, or None after `close`, as `SyncWorkers` does."""
        return None if self._is_closed else {}

    def set_states(self, state: StateTree) -> None:
        """Do nothing."""

    @property
    def waited_s(self) -> list[float]:
        """Empty: no worker waits."""
        return []

    def rest(self) -> bool:
        """Return False: there are no workers to end."""
        return False

    def close(self) -> None:
        """Mark the states of the environments as lost."""
        self._is_closed = True


class SyncWorkers:
    """The workers 1 to K-1, each in its own process.

    Attributes:
        group: this process as a member of the group, with rank 0.
        children: the processes of workers 1 to K-1, in order of rank; empty after a failure.
    """

    def __init__(
        self,
        makes: list[MakeWorker],
        memory: GroupMemory,
        commands: CommandMemory,
        start_timeout_s: float,
        timeout_s: float,
        hosts: Hosts | None = None,
    ) -> None:
        """Start the workers; `wait_ready` waits until they are ready.

        Args:
            makes: one per worker, except worker 0.
            memory: for all K workers.
            commands: likewise.
            start_timeout_s: time limit for a worker to start and build its part.
            timeout_s: time limit for any wait of this process for another worker.
            hosts: the other hosts, if there are any.

        Raises:
            ValueError: the function that builds a worker's part cannot be pickled.
        """
        self._start_timeout_s, self._timeout_s = start_timeout_s, timeout_s
        self._command, self._done_fraction = commands.command.view(), commands.done_fraction.view()
        self._num_episodes = commands.num_episodes.view()
        self._episodes = EpisodesReader(commands.episodes, self._num_episodes)
        self._shared = SharedGroup(memory, 0, self._watch, hosts)
        self.group: Group = self._shared
        self.children = Children()
        sent = [pickled(make, f"{UNSENDABLE}; use workers 1, or move them") for make in makes]
        with self.children:
            for rank, make in enumerate(sent, start=1):
                self.children.append(
                    start(f"worker {rank}", partial(_work, make, memory, commands, rank), __name__, make)
                )

    def wait_ready(self) -> None:
        """Wait until every worker has built its part.

        Raises:
            ValueError: the user's script has no main guard, and the workers must import it.
            EnvFailure: an environment failed.
            WorkerFailure: a worker failed in another way, or did not answer in time.
        """
        with self.children:
            self.children.receive_within(self._start_timeout_s, "start_timeout_s")

    def begin(self, done_fraction: float) -> None:
        """Start one iteration in the other workers; worker 0 must then run its own."""
        if not self.children:
            raise WorkerFailure("the workers are gone.")
        self._done_fraction[0] = done_fraction
        self._give(_Command.ITERATE)

    def finished(self) -> list[Episodes]:
        """Return the other workers' finished episodes; call it after the first exchange of the iteration."""
        return [self._episodes.take(self._num_episodes)]

    def get_shards(self) -> StateTree | None:
        """Return the states of these workers' shards, by their numbers, or None if the workers have ended."""
        if not self.children:
            return None
        with self.children:
            self._give(_Command.GET_STATE)
            states: list[StateTree] = self.children.receive_within(self._timeout_s, "env_timeout_s")
        return {number: shard for state in states for number, shard in state.items()}

    def set_states(self, state: StateTree) -> None:
        """Send each worker the state of its shards and what is common, and wait until it has loaded it.

        Raises:
            ValueError: a state does not fit the worker.
            WorkerFailure: a worker died or hung.
        """
        shards = read_branch(state, "shards")
        with self.children:
            self._give(_Command.SET_STATE)
            for child, numbers in zip(self.children, self._shared.division.workers[1:], strict=True):
                self._hand(child, {**state, "shards": {str(number): shards[str(number)] for number in numbers}})

    def _hand(self, child: Child, state: StateTree) -> None:
        child.send(_to_arrays(state))
        try:
            child.receive_within(self._timeout_s, "env_timeout_s")
        except CHILD_FAILURES as error:
            if was_sent(error):  # the worker lives, but cannot load the state
                raise ValueError(str(error)) from error
            raise

    @property
    def waited_s(self) -> list[float]:
        """Seconds that each worker has waited for the others so far, by rank."""
        return self._shared.waited_s

    def rest(self) -> bool:
        """End the workers, since the next command may never come; return True."""
        self.close()
        return True

    def close(self) -> None:
        """End the workers; safe to call twice."""
        self.children.end()

    def _give(self, command: _Command) -> None:
        self._command[1] = command
        fence()
        self._command[0] += 1

    def _watch(self, waited_s: float) -> None:
        """Raise if a worker has failed or is too late; during an iteration a worker sends only failures."""
        with self.children:
            for child in self.children:
                if child.has_news():
                    child.receive()
            if waited_s > self._timeout_s:
                late = [f"worker {rank}" for rank in self._shared.late_ranks]
                if late:  # else the last one has just arrived
                    what = f"{' and '.join(late)} kept the others waiting for {waited_s:.0f} s"
                    raise WorkerFailure(f"{what} (raise env_timeout_s if steps take longer).")


def _work(make: Pickled[MakeWorker], memory: GroupMemory, commands: CommandMemory, rank: int, parent: Parent) -> None:
    """Run worker `rank` until worker 0 closes the pipe or dies."""
    torch.set_num_threads(1)

    def watch(waited_s: float) -> None:
        if parent.has_news():
            parent.receive()  # raises: nothing is sent during an exchange, so worker 0 has left

    group = SharedGroup(memory, rank, watch)
    with closing(make.load()(group)) as worker:
        parent.send({})
        _obey(worker, commands, group, parent)


def _obey(worker: Worker, commands: CommandMemory, group: SharedGroup, parent: Parent) -> None:
    """Execute commands until `ParentLeft` is raised."""
    command, done_fraction, phases = commands.command.view(), commands.done_fraction.view(), Phases()
    episodes, num_episodes = EpisodesWriter(commands.episodes, group.rank), commands.num_episodes.view()
    given, done = command.data, 0
    while True:
        _wait_command(given, done, parent)
        done += 1
        match _Command(int(given[1])):
            case _Command.ITERATE:
                finished = worker.collect(phases)
                episodes.put(finished, int(num_episodes[group.rank]))
                num_episodes[group.rank] += len(finished)  # worker 0 reads both after the next exchange
                with suppress(NonFiniteError):  # all workers raise it, and worker 0 reports it
                    worker.learn(float(done_fraction[0]), phases)
            case _Command.GET_STATE:
                parent.send(_to_arrays(worker.get_shards()))
            case _Command.SET_STATE:
                worker.set_state(parent.receive())
                parent.send({})


def _wait_command(given: memoryview, done: int, parent: Parent) -> None:
    """Wait for the command after the first `done` ones."""

    def watch(waited_s: float) -> None:
        if parent.has_news() and given[0] == done:  # check in this order: a state is sent after its command
            parent.receive()

    wait_until(lambda: bool(given[0] != done), watch)
    fence()


def _to_arrays(state: StateTree) -> StateTree:
    """Replace tensors by arrays: torch would send a tensor as memory that both processes then share."""
    return {name: _to_array(part) for name, part in state.items()}


def _to_array(part: StateTree | StateLeaf) -> StateTree | StateLeaf:
    if isinstance(part, Mapping):
        return _to_arrays(part)
    return part.cpu().numpy() if isinstance(part, torch.Tensor) else part
