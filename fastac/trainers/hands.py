"""A3C's worker processes: started, watched, and started again when they are lost.

Each runs its own pair until the budget is spent or the board says stop, and tells the first process only that
it is ready, that it is done, or that it failed. What it does meanwhile stands on the board.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from time import monotonic, perf_counter
from typing import Protocol, TypeAlias, cast

import torch

from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
from fastac.processes import (
    START_TIMEOUT_S,
    Child,
    Failed,
    close,
    follow,
    get_context,
    ignore_signals,
    pickled,
    start,
    to_error,
    to_failed,
    unpickled,
)
from fastac.trainers.board import ENV_STEPS, ITERATIONS, LONGEST, Board, Desk
from fastac.trainers.group import wait_until
from fastac.trainers.pair import Pair

log = logging.getLogger("fastac")

# A worker hangs that is silent for so long, and for so many times the longest iteration of any worker.
SILENCE_S = 5.0
SILENCE_ITERATIONS = 20.0
_GRACE_S = 2.0  # that a worker has to end in order after the first process has gone


class Hand(Protocol):
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


class _Done:
    """What a worker sends when it has ended in order."""


# Builds in the worker's process what it runs; sent there, so it must be picklable.
MakeHand: TypeAlias = Callable[[Board, Desk, AbstractContextManager[object]], Hand]


@dataclass(slots=True)
class _Place:
    """A worker as the first process sees it."""

    child: Child
    facts: Facts | None = None  # None until it is ready
    is_done: bool = False
    is_lost: bool = False
    iterations: int = -1  # when last looked at
    silence_s: float = 0.0


class Hands:
    """The workers 0 to K-1.

    Attributes:
        restarts: how often one was started again.
    """

    def __init__(
        self,
        board: Board,
        make: Callable[[int, int], MakeHand],
        lock: AbstractContextManager[object],
        budget: int,
        max_restarts: int,
    ) -> None:
        """Start the workers; `wait_ready` waits until they stand.

        Args:
            board: shared by all.
            make: from a worker's number, and how many were started in another's place before, to what builds
                its part.
            lock: for updates; a null context for none.
            budget: environment steps of all workers at which they end.
            max_restarts: a worker lost after so many is one too many.

        Raises:
            ValueError: what makes a worker's part cannot be sent to it.
        """
        self._board, self._make, self._lock, self._budget = board, make, lock, budget
        self._max_restarts = max_restarts
        self._counts, self._seconds, self._control = board.counts.view(), board.seconds.view(), board.control.view()
        self._context = get_context(__name__)
        self._places: list[_Place] = []
        self.restarts = self._started = 0
        self._looked = monotonic()
        self._start_all()

    def _start_all(self) -> None:
        self._control[1] = 0
        try:
            for worker in range(len(self._counts)):
                self._places.append(_Place(self._start(worker)))
        except BaseException:
            self.close()
            raise

    def _start(self, worker: int) -> Child:
        replaced = max(0, self._started + 1 - len(self._counts))
        self._started += 1
        make = pickled(
            self._make(worker, replaced),
            "the env and encoder functions of A3C are sent to other processes, so they must be defined at the "
            "top level of a module; move them there, or train with a2c",
        )
        return start(self._context, partial(_work, make, self._board, worker, self._lock, self._budget))

    def wait_ready(self) -> Facts:
        """Wait until every worker has built its part; return what one of them says of it.

        Raises:
            EnvFailure: an environment failed.
            WorkerFailure: a worker failed otherwise, or gave no answer in time.
        """
        try:
            while not all(place.facts for place in self._places):
                for _, error in self._look(0.1):
                    raise _hint(error)
        except BaseException:
            self.close()
            raise
        facts = self._places[0].facts
        assert facts is not None
        return facts

    def begin(self) -> None:
        """Let them train, until the budget is spent or `halt`, after which they are started anew."""
        if not self._places:
            self._start_all()
        self._control[0] = 1

    @property
    def are_done(self) -> bool:
        """Whether all have ended in order."""
        return all(place.is_done for place in self._places)

    def watch(self, period_s: float) -> None:
        """Wait for so long, or until there is news; start lost workers again.

        Raises:
            EnvFailure, WorkerFailure: one worker was lost too many; its traceback is the cause.
            NonFiniteError: a worker's loss or gradient is not finite, which starting again would not mend.
        """
        for worker, error in self._look(period_s):
            if isinstance(error, NonFiniteError):
                raise error
            if self._counts[:, ENV_STEPS].sum() >= self._budget:
                continue  # it was not needed any more
            if self.restarts >= self._max_restarts:
                raise type(error)(
                    f"{str(error).removesuffix('.')}; {self.restarts} workers have been started again already"
                ) from error.__cause__
            self.restarts += 1
            log.warning(
                "%s: started again with new episodes (%d of at most %d times)",
                str(error).removesuffix("."),
                self.restarts,
                self._max_restarts,
            )
            self._places[worker] = _Place(self._start(worker))

    def halt(self) -> None:
        """Let every worker finish its iteration and end; those that do not in time are killed."""
        self._control[1] = 1
        while not self.are_done and self._places:
            for _, error in self._look(0.05):
                log.warning("%s, while training was being stopped", str(error).removesuffix("."))
        self.close()

    def _look(self, period_s: float) -> list[tuple[int, EnvFailure | NonFiniteError | WorkerFailure]]:
        """Wait for news; take it in, and return who is lost and how."""
        for place in self._places:
            place.is_done |= place.child.pipe.closed  # at exit, where multiprocessing ends what nobody has ended
        pipes = {place.child.pipe: worker for worker, place in enumerate(self._places) if not place.is_done}
        news = {pipes[pipe] for pipe in wait(list(pipes), period_s) if isinstance(pipe, Connection)}
        now = monotonic()
        # A process that was stopped itself (Ctrl-Z, a debugger) has not seen anybody being silent.
        elapsed_s, self._looked = min(now - self._looked, period_s + 0.5), now
        lost = []
        for worker in pipes.values():
            error = self._hear(worker) if worker in news else self._miss(worker, elapsed_s)
            if error is not None:
                place = self._places[worker]
                place.is_done = place.is_lost = True
                close([place.child], timeout_s=0.0)
                lost.append((worker, error))
        return lost

    def _hear(self, worker: int) -> EnvFailure | NonFiniteError | WorkerFailure | None:
        place = self._places[worker]
        try:
            message: Facts | _Done | Failed = place.child.pipe.recv()
        except (EOFError, OSError):
            return WorkerFailure(f"worker {worker} died (exit code {place.child.exit_code()})")
        if isinstance(message, Failed):
            return to_error(f"worker {worker}", message)
        if isinstance(message, Facts):
            place.facts, place.silence_s = message, 0.0
        else:
            place.is_done = True
        return None

    def _miss(self, worker: int, elapsed_s: float) -> WorkerFailure | None:
        """Note that a worker had nothing to say, and whether the board shows that it works nevertheless."""
        place = self._places[worker]
        iterations = int(self._counts[worker, ITERATIONS])
        if iterations != place.iterations or (place.facts and not self._control[0]):
            place.iterations, place.silence_s = iterations, 0.0
            return None
        place.silence_s += elapsed_s
        if place.silence_s <= self._patience(place):
            return None
        what = "did nothing" if place.facts else "was not ready"
        return WorkerFailure(f"worker {worker} {what} for {place.silence_s:.0f} s")

    def _patience(self, place: _Place) -> float:
        longest_s = float(self._seconds[:, LONGEST].max())
        if place.facts is None or longest_s == 0.0:
            return START_TIMEOUT_S
        return max(SILENCE_S, SILENCE_ITERATIONS * longest_s)

    def close(self) -> None:
        """End the workers, in the middle of whatever they do; safe to call twice."""
        self._control[1] = 1
        close([place.child for place in self._places if not place.is_lost])
        self._places.clear()


def _hint(error: EnvFailure | NonFiniteError | WorkerFailure) -> EnvFailure | NonFiniteError | WorkerFailure:
    """Say what a worker that died while it started has most often died of."""
    if error.__cause__ is not None:
        return error
    guard = "a script that trains with A3C must do so below `if __name__ == '__main__':`"
    return type(error)(f"{error} ({guard})")


def _work(
    make: bytes,
    board: Board,
    worker: int,
    lock: AbstractContextManager[object],
    budget: int,
    pipe: Connection,
) -> None:
    """Live as a worker."""
    ignore_signals()
    torch.set_num_threads(1)
    has_first_left = follow(pipe, lambda _: None, _GRACE_S)  # nothing is ever sent to a worker
    with suppress(OSError):  # the first process has gone
        try:
            desk = Desk(board, worker)
            with closing(cast(MakeHand, unpickled(make))(board, desk, lock)) as hand:
                pipe.send(hand.facts())
                wait_until(lambda: desk.may_go or desk.shall_stop or has_first_left.is_set(), lambda _: None)
                hand.begin()
                _train(hand.pair, desk, budget, has_first_left)
            pipe.send(_Done())
        except Exception as error:
            pipe.send(to_failed(error))
    has_first_left.wait()


def _train(pair: Pair, desk: Desk, budget: int, has_first_left: threading.Event) -> None:
    """Collect and learn until the budget is spent, or somebody says stop."""
    phases = desk.phases()
    while not (desk.shall_stop or has_first_left.is_set()):
        env_steps = desk.env_steps()
        if env_steps >= budget:
            return
        began = perf_counter()
        finished = pair.collect(phases)
        losses = pair.learn(env_steps / budget, phases)
        desk.note(finished, pair.learner.rows, losses, phases, perf_counter() - began)
