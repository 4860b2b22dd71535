"""The workers beside this process: started, commanded, watched and ended.

The first worker is this process itself. The others obey commands in shared memory, on which they spin
for a moment and then sleep; states and failures go through pipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from enum import IntEnum
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeAlias, cast

import torch

from fastac.contract import (
    Alone,
    EnvFailure,
    Episodes,
    Group,
    NonFiniteError,
    Phases,
    StateLeaf,
    StateTree,
    WorkerFailure,
)
from fastac.processes import (
    UNSENDABLE,
    Child,
    Failed,
    Stopwatch,
    WorkerTraceback,
    close,
    get_context,
    has_news,
    ignore_signals,
    pickled,
    start,
    to_error,
    to_failed,
    unpickled,
)
from fastac.workers.shared_group import GroupMemory, SharedGroup, fence, wait_until
from fastac.workers.worker import Worker

WORKER_TIMEOUT_S = 120.0  # the longest that one worker may keep the others waiting


# Builds a worker in its process; sent there, so it must be picklable.
MakeWorker: TypeAlias = Callable[[Group], Worker]


class _Command(IntEnum):
    ITERATE = 1
    GET_STATE = 2
    SET_STATE = 3


class NoOtherWorkers:
    """The others of a run with one worker: nobody."""

    group: Group = Alone()
    _is_closed = False

    def begin(self, done_fraction: float) -> None:
        """Do nothing."""

    def finished(self) -> list[Episodes]:
        """Nobody's."""
        return []

    def get_states(self) -> list[StateTree] | None:
        """Nobody's, or None after `close`, as `SyncWorkers` does."""
        return None if self._is_closed else []

    def set_states(self, states: list[StateTree]) -> None:
        """Do nothing."""

    def rest(self) -> bool:
        """Return False: nobody waits."""
        return False

    def close(self) -> None:
        """Note that this worker's environments are lost."""
        self._is_closed = True


class SyncWorkers:
    """The workers 1 to K-1, in processes of their own.

    Attributes:
        group: this process's membership, as worker 0.
    """

    def __init__(
        self,
        makes: list[MakeWorker],
        memory: GroupMemory,
        start_timeout_s: float = 120.0,
        timeout_s: float = WORKER_TIMEOUT_S,
    ) -> None:
        """Start the workers; `wait_ready` waits until they stand.

        Args:
            makes: one per worker beside this one.
            memory: for one worker more than that.
            start_timeout_s: the longest that a worker may take to start and build its part.
            timeout_s: the longest that a worker may keep this one waiting.

        Raises:
            ValueError: what makes a worker's part cannot be sent to it.
        """
        self._start_timeout_s, self._timeout_s = start_timeout_s, timeout_s
        self._command, self._done_fraction = memory.command.view(), memory.done_fraction.view()
        self._shared = SharedGroup(memory, 0, self._watch)
        self.group: Group = self._shared
        self._children: list[Child] = []
        sent = [
            pickled(
                make,
                f"{UNSENDABLE}; use workers 1, or move them",
            )
            for make in makes
        ]
        context = get_context(__name__)
        try:
            for rank, make in enumerate(sent, start=1):
                self._children.append(start(context, partial(_work, make, memory, rank), make))
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Wait until every worker has built its part.

        Raises:
            ValueError: the script that started this one has no main guard, and workers need something of it.
            EnvFailure: an environment failed.
            WorkerFailure: a worker failed otherwise, or gave no answer.
        """
        watch = Stopwatch()
        self._guarded(lambda: [self._receive(rank, self._start_timeout_s, watch) for rank in self._ranks])

    @property
    def _ranks(self) -> range:
        return range(1, len(self._children) + 1)

    def begin(self, done_fraction: float) -> None:
        """Have the workers do one iteration, beside which this one does its own."""
        if not self._children:
            raise WorkerFailure("the workers are gone.")
        self._done_fraction[0] = done_fraction
        self._give(_Command.ITERATE)

    def finished(self) -> list[Episodes]:
        """Return the episodes that ended with the workers, by rank."""
        return self._shared.get_finished()

    def get_states(self) -> list[StateTree] | None:
        """Return each worker's own state, or None where the workers are gone."""
        if not self._children:
            return None
        self._give(_Command.GET_STATE)
        states: list[StateTree] = []
        self._guarded(lambda: states.extend(self._receive(rank, self._timeout_s) for rank in self._ranks))
        return states

    def set_states(self, states: list[StateTree]) -> None:
        """Hand each worker its state, and wait until it has taken it in.

        Raises:
            ValueError: it does not fit.
            WorkerFailure: a worker died or hung.
        """
        self._give(_Command.SET_STATE)
        self._guarded(lambda: [self._exchange(rank, state) for rank, state in zip(self._ranks, states, strict=True)])

    def _exchange(self, rank: int, state: StateTree) -> StateTree:
        child = self._children[rank - 1]
        try:
            child.pipe.send(_to_arrays(state))
        except OSError as error:
            raise WorkerFailure(f"worker {rank} {child.tell_end()}.") from error
        try:
            return self._receive(rank, self._timeout_s)
        except (EnvFailure, WorkerFailure) as error:
            if isinstance(error.__cause__, WorkerTraceback):  # it lives, and cannot take in what it was sent
                raise ValueError(str(error)) from error
            raise

    def rest(self) -> bool:
        """End the workers, who would wait for the next command for who knows how long; return True."""
        self.close()
        return True

    def close(self) -> None:
        """End the workers; safe to call twice."""
        close(self._children)

    def _give(self, command: _Command) -> None:
        self._command[1] = command
        fence()
        self._command[0] += 1

    def _guarded(self, work: Callable[[], object]) -> None:
        """Do `work`; after a failure no worker is left."""
        try:
            work()
        except BaseException:
            self.close()
            raise

    def _receive(self, rank: int, timeout_s: float, watch: Stopwatch | None = None) -> StateTree:
        """Return what worker `rank` sends, at the latest when `watch`, a new one by default, says `timeout_s`.

        Raises:
            EnvFailure: it sent that an environment failed.
            WorkerFailure: it sent that it failed, or died, or sent nothing in time.
        """
        child = self._children[rank - 1]
        try:
            if not has_news(child.pipe, watch or Stopwatch(), timeout_s):
                raise WorkerFailure(f"worker {rank} gave no answer for {timeout_s:g} s.")
            reply: StateTree | Failed = child.pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerFailure(f"worker {rank} {child.tell_end()}.") from error
        if isinstance(reply, Failed):
            raise to_error(f"worker {rank}", reply)
        return reply

    def _watch(self, waited_s: float) -> None:
        """Raise if a worker has failed, or keeps this one waiting too long; nobody sends while it iterates."""
        try:
            for rank in self._ranks:
                if self._children[rank - 1].pipe.poll(0):
                    self._receive(rank, 0.0)
            if waited_s > self._timeout_s:
                raise WorkerFailure(f"a worker has kept the others waiting for {waited_s:.0f} s.")
        except BaseException:
            self.close()
            raise


class _FirstLeftError(Exception):
    """The first worker has closed the pipe, or is gone."""


def _receive_from_first(pipe: Connection) -> StateTree:
    try:
        state: StateTree = pipe.recv()
    except (EOFError, OSError) as error:
        raise _FirstLeftError from error
    return state


def _send_to_first(pipe: Connection, message: StateTree | Failed) -> None:
    try:
        pipe.send(message)
    except OSError as error:
        raise _FirstLeftError from error


def _work(make: bytes, memory: GroupMemory, rank: int, pipe: Connection) -> None:
    """Live as worker `rank` until the pipe closes."""
    ignore_signals()
    torch.set_num_threads(1)

    def watch(waited_s: float) -> None:
        if pipe.poll(0):
            _receive_from_first(pipe)  # nothing is sent to a worker that waits, so the pipe has closed

    group = SharedGroup(memory, rank, watch)
    with suppress(_FirstLeftError):
        try:
            worker = cast(MakeWorker, unpickled(make))(group)
            with closing(worker):
                _send_to_first(pipe, {})
                _obey(worker, memory, group, pipe)
        except _FirstLeftError:
            raise
        except Exception as error:
            _send_to_first(pipe, to_failed(error))


def _obey(worker: Worker, memory: GroupMemory, group: SharedGroup, pipe: Connection) -> None:
    """Do as commanded, for ever."""
    command, done_fraction, phases = memory.command.view(), memory.done_fraction.view(), Phases()
    given, done = command.data, 0
    while True:
        _wait_command(given, done, pipe)
        done += 1
        match _Command(int(given[1])):
            case _Command.ITERATE:
                group.put_finished(worker.collect(phases))
                with suppress(NonFiniteError):  # everybody sees it, and the first worker tells
                    worker.learn(float(done_fraction[0]), phases)
            case _Command.GET_STATE:
                _send_to_first(pipe, _to_arrays(worker.get_own_state()))
            case _Command.SET_STATE:
                worker.set_whole_state(_receive_from_first(pipe))
                _send_to_first(pipe, {})


def _wait_command(given: memoryview, done: int, pipe: Connection) -> None:
    """Wait for a command beyond those `done`."""

    def watch(waited_s: float) -> None:
        if pipe.poll(0) and given[0] == done:  # in this order: a state is sent after its command is given
            _receive_from_first(pipe)

    wait_until(lambda: bool(given[0] != done), watch)
    fence()


def _to_arrays(state: StateTree) -> StateTree:
    """Replace tensors by arrays: a tensor would be sent as memory that both processes share from then on."""
    return {name: _to_array(part) for name, part in state.items()}


def _to_array(part: StateTree | StateLeaf) -> StateTree | StateLeaf:
    if isinstance(part, Mapping):
        return _to_arrays(part)
    return part.cpu().numpy() if isinstance(part, torch.Tensor) else part
