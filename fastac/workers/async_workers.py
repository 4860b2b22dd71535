"""A3C's worker processes: started, watched, and started again when they are lost.

Each trains until the budget is spent or somebody says stop, and tells the first process only that
it is ready, that it is done, or that it failed. What it does meanwhile is in the shared counters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait

from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
from fastac.processes import (
    UNSENDABLE,
    Child,
    Failed,
    Stopwatch,
    close,
    get_context,
    pickled,
    start,
    to_error,
)
from fastac.workers.hogwild_worker import Done, MakeHogwildWorker, work
from fastac.workers.shared_counters import BEATS, ENV_STEPS, ITERATIONS, PHASES, SharedCounters
from fastac.workers.shared_group import fence
from fastac.workers.worker import WorkerInfo

log = logging.getLogger("fastac")

# A worker hangs that has finished no environment step and no iteration for so long, and for so many times what its
# iterations take on average, where nobody has said how long a step may take; before there has been any, for as long
# as a start may take.
SILENCE_S = 10.0
SILENCE_ITERATIONS = 20.0


@dataclass(slots=True)
class _Place:
    """A worker as the first process sees it."""

    child: Child
    info: WorkerInfo | None = None  # None until it is ready
    is_done: bool = False
    is_lost: bool = False
    began_at: int = 0  # iterations in the row when it was ready: of the worker before
    beats: int = -1  # when last looked at
    silence_s: float = 0.0


class AsyncWorkers:
    """The workers 0 to K-1.

    Attributes:
        restarts: how often one was started again.
    """

    def __init__(
        self,
        counters: SharedCounters,
        make: Callable[[int, int], MakeHogwildWorker],
        lock: AbstractContextManager[object],
        budget: int,
        max_restarts: int,
        start_timeout_s: float,
        env_timeout_s: float | None,
    ) -> None:
        """Start the workers; `wait_ready` waits until they stand.

        Args:
            counters: shared by all.
            make: from a worker's number, and how many were started in another's place before, to what builds
                its part.
            lock: for updates; a null context for none.
            budget: environment steps of all workers at which they end.
            max_restarts: a worker lost after so many is one too many.
            start_timeout_s: the longest that a worker may take to start, and again for its first iteration.
            env_timeout_s: the longest that it may take for a step of all its environments; None goes by its iterations.

        Raises:
            ValueError: what makes a worker's part cannot be sent to it.
        """
        self._counters, self._make, self._lock, self._budget = counters, make, lock, budget
        self._max_restarts = max_restarts
        self._start_timeout_s, self._env_timeout_s = start_timeout_s, env_timeout_s
        self._counts, self._seconds, self._control = (
            counters.counts.view(),
            counters.seconds.view(),
            counters.control.view(),
        )
        self._context = get_context(__name__)
        self._places: list[_Place] = []
        self.restarts = self._started = 0
        self._watch = Stopwatch()
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
            f"{UNSENDABLE}; move them there, or train with a2c",
        )
        try:
            return start(self._context, partial(work, make, self._counters, worker, self._lock, self._budget), make)
        except OSError as error:  # no memory, or too many open files
            raise WorkerFailure(f"worker {worker} could not be started ({error})") from error

    def wait_ready(self) -> WorkerInfo:
        """Wait until every worker has built its part; return what one of them says of it.

        Raises:
            ValueError: the script that started this one has no main guard, and workers need something of it.
            EnvFailure: an environment failed.
            WorkerFailure: a worker failed otherwise, or gave no answer in time.
        """
        try:
            while not all(place.info for place in self._places):
                for _, error in self._look(0.1):
                    raise error
        except BaseException:
            self.close()
            raise
        info = self._places[0].info
        assert info is not None
        return info

    def begin(self) -> None:
        """Let them train, until the budget is spent or `halt`, after which they are started anew."""
        if not self._places:
            self._start_all()
        fence()  # what they take over has been written before
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
                log.warning("%s, when the budget was spent", str(error).removesuffix("."))
                continue
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
        ready = wait(list(pipes), period_s)
        news = {worker for pipe, worker in pipes.items() if pipe in ready}
        before_s = self._watch.elapsed_s
        elapsed_s = self._watch.look() - before_s
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
            message: WorkerInfo | Done | Failed = place.child.pipe.recv()
        except (EOFError, OSError):
            return WorkerFailure(f"worker {worker} {place.child.tell_end()}")
        if isinstance(message, Failed):
            return to_error(f"worker {worker}", message)
        if isinstance(message, WorkerInfo):
            place.info, place.silence_s = message, 0.0
            place.began_at = int(self._counts[worker, ITERATIONS])
        else:
            place.is_done = True
        return None

    def _miss(self, worker: int, elapsed_s: float) -> WorkerFailure | None:
        """Note that a worker had nothing to say, and whether the counters show that it works nevertheless."""
        place = self._places[worker]
        beats = int(self._counts[worker, [BEATS, ITERATIONS]].sum())
        if beats != place.beats or (place.info and not self._control[0]):
            place.beats, place.silence_s = beats, 0.0
            return None
        place.silence_s += elapsed_s
        if place.silence_s <= self._patience_s(worker):
            return None
        what = "finished no step" if place.info else "was not ready"
        return WorkerFailure(f"worker {worker} {what} for {place.silence_s:.0f} s")

    def _patience_s(self, worker: int) -> float:
        place, iterations = self._places[worker], int(self._counts[worker, ITERATIONS])
        if place.info is None or iterations == place.began_at:
            # Its first iteration resets everything, and may compile kernels.
            return max(self._start_timeout_s, self._env_timeout_s or 0.0)
        if self._env_timeout_s is not None:
            return self._env_timeout_s
        mean_s = float(self._seconds[worker, : len(PHASES)].sum()) / iterations
        return max(SILENCE_S, SILENCE_ITERATIONS * mean_s)

    def close(self) -> None:
        """End the workers, in the middle of whatever they do; safe to call twice."""
        self._control[1] = 1
        children = [place.child for place in self._places if not place.is_lost]
        self._places.clear()  # first, since an interrupt may come while they are being closed
        close(children)
