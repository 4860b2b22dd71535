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

from fastac.contract import NonFiniteError
from fastac.pickling import UNSENDABLE, pickled
from fastac.processes import CHILD_FAILURES, Child, ChildFailure, Children, Restarts, start
from fastac.workers.hogwild_worker import Done, MakeHogwildWorker, work
from fastac.workers.shared_counters import BEATS, ENV_STEPS, ITERATIONS, PHASES, SharedCounters
from fastac.workers.waiting import fence
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
    is_done: bool = False  # or lost
    began_at: int = 0  # iterations in the row when it was ready: of the worker before
    beats: int = -1  # when last looked at


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
        """The workers' processes."""
        return Children(place.child for place in self._places)

    @property
    def restarts(self) -> int:
        """How often a worker was started again."""
        return self._restarts.count

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
        make = pickled(self._make(worker, replaced), f"{UNSENDABLE}; move them there, or train with a2c")
        part = partial(work, make, self._counters, worker, self._lock, self._budget)
        return start(f"worker {worker}", part, __name__, make)

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
            self._restarts.add(error, " with new episodes")
            self._places[worker] = _Place(self._start(worker))

    def halt(self) -> None:
        """Let every worker finish its iteration and end; those that do not in time are killed."""
        self._control[1] = 1
        while not self.are_done and self._places:
            for _, error in self._look(0.05):
                log.warning("%s, while training was being stopped", str(error).removesuffix("."))
        self.close()

    def _look(self, period_s: float) -> list[tuple[int, ChildFailure]]:
        """Wait for news; take it in, and return who is lost and how."""
        for place in self._places:
            place.is_done |= place.child.has_ended  # at exit, where children end that nobody has ended
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
        """Raise if a worker that had nothing to say has for too long shown in the counters no step either."""
        beats = int(self._counts[worker, [BEATS, ITERATIONS]].sum())
        if beats != place.beats or (place.info and not self._control[0]):
            place.beats = beats
            place.child.silence.restart()
        what = "finished no step" if place.info else "was not ready"
        place.child.check_silence(what, *self._patience(worker))

    def _patience(self, worker: int) -> tuple[float, str]:
        """Return for how many seconds a worker may show nothing, and the setting to raise if it needs longer."""
        place, iterations = self._places[worker], int(self._counts[worker, ITERATIONS])
        if place.info is None or iterations == place.began_at:
            # Its first iteration resets everything, and may compile kernels.
            return max(self._start_timeout_s, self._env_timeout_s or 0.0), "start_timeout_s"
        if self._env_timeout_s is not None:
            return self._env_timeout_s, "env_timeout_s"
        mean_s = float(self._seconds[worker, : len(PHASES)].sum()) / iterations
        return max(SILENCE_S, SILENCE_ITERATIONS * mean_s), "env_timeout_s"

    def close(self) -> None:
        """End the workers, in the middle of whatever they do; safe to call twice."""
        self._control[1] = 1
        children = self.children
        self._places.clear()  # first, since an interrupt may come while they are being closed
        children.end()
