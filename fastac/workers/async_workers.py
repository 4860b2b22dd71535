"""A3C's worker processes: this module starts them, watches them, and restarts lost ones.

A worker trains until the budget is spent or the stop flag is set. It sends the first process only three kinds of
message: ready, done or failed. Its progress is in the shared counters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from fastac.contract import NonFiniteError
from fastac.pickling import UNSENDABLE, pickled
from fastac.processes import CHILD_FAILURES, Child, ChildFailure, Children, Restarts, start
from fastac.workers.hogwild_worker import Done, MakeHogwildWorker, work
from fastac.workers.shared_counters import BEATS, ENV_STEPS, IS_IDLE, ITERATIONS, PHASES, SharedCounters
from fastac.workers.waiting import fence
from fastac.workers.worker import WorkerInfo

log = logging.getLogger("fastac")

# Without env_timeout_s, a worker counts as hung if it finishes no environment step and no iteration for SILENCE_S
# seconds and for SILENCE_ITERATIONS times its mean iteration time. Its first iteration has start_timeout_s instead.
SILENCE_S = 10.0
SILENCE_ITERATIONS = 20.0
_PAUSE_S = 0.001  # between looks whether a worker has finished its iteration


@dataclass(slots=True)
class _Place:
    """What the first process knows of a worker."""

    child: Child
    info: WorkerInfo | None = None  # None until it is ready
    is_done: bool = False  # ended in order, or lost
    began_at: int = 0  # iteration count inherited from the worker it replaced
    beats: int = -1  # steps and iterations at the last check


class AsyncWorkers:
    """The workers 0 to K-1."""

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
        """Start the workers; `wait_ready` waits until they are ready.

        Args:
            counters: shared by all processes.
            make: takes a worker's number and how many workers were started beyond the first K, itself included;
                returns the function that builds the worker's part.
            lock: held during an update; a null context for no lock.
            budget: total environment steps of all workers; they end when it is spent.
            max_restarts: restarts allowed for all workers together; the next loss ends the run.
            start_timeout_s: time limit for a worker's start, and again for its first iteration.
            env_timeout_s: time limit for one step of all its environments; None derives it from its mean iteration.

        Raises:
            ValueError: the function that builds a worker's part cannot be pickled.
        """
        self._counters, self._make, self._lock, self._budget = counters, make, lock, budget
        self._restarts = Restarts(max_restarts)
        self._start_timeout_s, self._env_timeout_s = start_timeout_s, env_timeout_s
        self._counts, self._seconds, self._control = (
            counters.counts.view(),
            counters.seconds.view(),
            counters.control.view(),
        )
        self._places: list[_Place] = []
        self._started = 0
        self._start_all()

    @property
    def children(self) -> Children:
        """The worker processes."""
        return Children(place.child for place in self._places)

    @property
    def restarts(self) -> int:
        """Restarts so far, of all workers."""
        return self._restarts.count

    def _start_all(self) -> None:
        self._control[:] = 0
        try:
            for worker in range(len(self._counts)):
                self._places.append(_Place(self._start(worker)))
        except BaseException:
            self.close()
            raise

    def _start(self, worker: int) -> Child:
        replaced = max(0, self._started + 1 - len(self._counts))
        self._started += 1
        self._counts[worker, IS_IDLE] = 1  # until it looks whether to train
        make = pickled(self._make(worker, replaced), f"{UNSENDABLE}; move them there, or train with a2c")
        part = partial(work, make, self._counters, worker, self._lock, self._budget)
        return start(f"worker {worker}", part, __name__, make)

    def wait_ready(self) -> WorkerInfo:
        """Wait until every worker has built its part; return the info of worker 0.

        Raises:
            ValueError: the user's script has no main guard, and the workers must import it.
            EnvFailure: an environment failed.
            WorkerFailure: a worker failed in another way, or was not ready in time.
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
        """Let the workers train until the budget is spent, or until `pause` or `halt`; start those that have ended."""
        if not self._places:
            self._start_all()
        for place in self._places:
            place.child.silence.skip()
        fence()  # publish the parameters and statistics before the start flag
        self._control[0] = 1

    def pause(self) -> None:
        """Let every worker finish its iteration and wait until `begin`; lost ones are replaced meanwhile.

        Raises:
            EnvFailure, WorkerFailure, NonFiniteError: see `watch`.
        """
        self._control[0] = 0
        fence()
        while any(not place.is_done and not self._counts[n, IS_IDLE] for n, place in enumerate(self._places)):
            self.watch(_PAUSE_S)
        fence()  # what they have written is visible from here on

    @property
    def are_done(self) -> bool:
        """Whether every worker is done or lost."""
        return all(place.is_done for place in self._places)

    def watch(self, period_s: float) -> None:
        """Wait for news for at most `period_s`; restart lost workers.

        Raises:
            EnvFailure, WorkerFailure: a worker was lost after `max_restarts` restarts; its traceback is the cause.
            NonFiniteError: a worker's loss or gradient is not finite; a restart would not help.
        """
        for worker, error in self._look(period_s):
            if isinstance(error, NonFiniteError):
                raise error
            if self._counts[:, ENV_STEPS].sum() >= self._budget:
                log.warning("%s, when the budget was spent", str(error).removesuffix("."))
                continue
            self._restarts.add(error, " with new episodes")
            self._places[worker] = _Place(self._start(worker))

    def halt(self) -> None:
        """Let every worker finish its iteration and end; kill a worker that shows no progress in time."""
        self._control[1] = 1
        while not self.are_done and self._places:
            for _, error in self._look(0.05):
                log.warning("%s, while training was being stopped", str(error).removesuffix("."))
        self.close()

    def _look(self, period_s: float) -> list[tuple[int, ChildFailure]]:
        """Wait for messages and process them; return the lost workers, each with its failure."""
        for place in self._places:
            place.is_done |= place.child.has_ended  # at interpreter exit, children are ended without `close`
        going_on = [(worker, place) for worker, place in enumerate(self._places) if not place.is_done]
        news = Children(place.child for _, place in going_on).wait(period_s)
        lost: list[tuple[int, ChildFailure]] = []
        for worker, place in going_on:
            try:
                if place.child in news:
                    self._hear(worker, place)
                else:
                    self._check_pulse(worker, place)
            except CHILD_FAILURES as error:
                place.is_done = True
                place.child.end(timeout_s=0.0)
                lost.append((worker, error))
        return lost

    def _hear(self, worker: int, place: _Place) -> None:
        message: WorkerInfo | Done = place.child.receive()
        place.child.silence.restart()
        if isinstance(message, Done):
            place.is_done = True
        else:
            place.info, place.began_at = message, int(self._counts[worker, ITERATIONS])

    def _check_pulse(self, worker: int, place: _Place) -> None:
        """Raise if the counters of a worker that sent no message have not moved for too long."""
        beats = int(self._counts[worker, [BEATS, ITERATIONS]].sum())
        if place.info and self._counts[worker, IS_IDLE] and not self._control.any():
            place.child.silence.skip()  # it waits, as it should
            return
        if beats != place.beats:
            place.beats = beats
            place.child.silence.restart()
        what = "finished no step" if place.info else "was not ready"
        place.child.check_silence(what, *self._patience(worker))

    def _patience(self, worker: int) -> tuple[float, str]:
        """Return how many seconds a worker may show no progress, and the setting that raises this limit."""
        place, iterations = self._places[worker], int(self._counts[worker, ITERATIONS])
        if place.info is None or iterations == place.began_at:
            # The first iteration resets the environments and may compile kernels.
            return max(self._start_timeout_s, self._env_timeout_s or 0.0), "start_timeout_s"
        if self._env_timeout_s is not None:
            return self._env_timeout_s, "env_timeout_s"
        mean_s = float(self._seconds[worker, : len(PHASES)].sum()) / iterations
        return max(SILENCE_S, SILENCE_ITERATIONS * mean_s), "env_timeout_s"

    def close(self) -> None:
        """End the workers without waiting for their iterations; safe to call twice."""
        self._control[1] = 1
        children = self.children
        self._places.clear()  # first: an interrupt may arrive while the children are being ended
        children.end()
