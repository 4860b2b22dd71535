"""The asynchronous trainer, A3C: workers learn without waiting, and one process watches them.

Mnih et al. 2016, arXiv 1602.01783. A worker collects and learns as an in-step worker does, but on its own copy of the
parameters. Its optimiser step changes the shared parameters, see `fastac.learning.optimizer.HogwildOptimizer`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from fastac.contract import (
    Asynchrony,
    EnvFailure,
    NonFiniteError,
    Phases,
    Report,
    StateTree,
    WorkerFailure,
    read_amount,
    read_array,
    read_branch,
    read_count,
)
from fastac.workers.async_workers import AsyncWorkers
from fastac.workers.shared_counters import (
    ENV_STEPS,
    EPISODES,
    IS_IDLE,
    ITERATIONS,
    LAG_MAX,
    LAG_SUM,
    LOSSES,
    PHASES,
    UPDATES,
    SharedCounters,
)
from fastac.workers.shared_episodes import EpisodesReader
from fastac.workers.waiting import fence

# Time between reports: 5% of the elapsed time, so that the end of a 1-second run is noticed quickly. At most 0.1 s,
# so that the run looks alive; at least 0.01 s, so that reporting costs at most 0.5% of a core.
_PERIOD_PART, _LEAST_PERIOD_S, _MOST_PERIOD_S = 0.05, 0.01, 0.1
_SILENT_S = 1.0  # time between reports without progress


class HogwildTrainer:
    """Lets the workers train, and reports their progress.

    Attributes:
        iteration: iterations so far, summed over the workers.
        env_steps: valid transitions so far, summed over the workers.
    """

    def __init__(self, total_env_steps: int, frame_skip: int, counters: SharedCounters, workers: AsyncWorkers) -> None:
        """Take the parts; see `fastac.build`."""
        self._budget, self._frame_skip, self._counters, self._workers = total_env_steps, frame_skip, counters, workers
        self._counts, self._staleness = counters.counts.view(), counters.staleness.view()
        self._finished = EpisodesReader(counters.episodes, self._counts[:, EPISODES])
        self._losses_seen = counters.losses.view().sum(axis=0)  # [2, L]
        self._losses = np.full(len(LOSSES), np.nan)
        self._restarts = 0  # in earlier processes of this run
        self._train_wall_s = self._began = 0.0
        self._is_running = False
        self._reported = 0
        self._read_counts()

    def run(self) -> Generator[Report, None, None]:
        """Yield reports until the budget is spent: first every 0.01 s, later every 0.1 s.

        Workers do not wait for the consumer, so its time counts as training time. They keep changing the shared
        parameters; `HogwildTraining.get_state` copies them. After `pause` they wait, and go on with the next report.

        Raises:
            EnvFailure, WorkerFailure: a worker was lost after the last allowed restart.
            NonFiniteError: a loss or gradient is not finite; that update was not applied.
        """
        if self.env_steps >= self._budget:
            return
        before_s = self._wall_s()
        reported_at: float | None = None  # no report before the first iteration, also in a resumed run
        try:
            while True:
                self._go_on()
                if self._workers.are_done:
                    break
                elapsed_s = self._wall_s() - before_s
                self._workers.watch(min(_MOST_PERIOD_S, max(_LEAST_PERIOD_S, _PERIOD_PART * elapsed_s)))
                is_news = self._counts[:, ITERATIONS].sum() > self._reported
                # Also report without progress, after _SILENT_S: the consumer can stop the run only after a report.
                is_late = reported_at is not None and perf_counter() - reported_at > _SILENT_S
                if not self._workers.are_done and (is_news or is_late):
                    yield self._report()
                    reported_at = perf_counter()
            last = self.halt()
            if last is not None:
                yield last
        except (EnvFailure, WorkerFailure, NonFiniteError, GeneratorExit):
            self._stop()
            raise

    def _go_on(self) -> None:
        if not self._is_running:
            self._began, self._is_running = perf_counter(), True
            self._workers.begin()

    def pause(self) -> Report | None:
        """Let every worker finish its iteration and wait; return the progress since the last report, or None.

        Raises:
            EnvFailure, WorkerFailure, NonFiniteError: see `run`.
        """
        if self._is_running:
            self._workers.pause()
            self._train_wall_s, self._is_running = self._wall_s(), False
        return self._report() if self._counts[:, ITERATIONS].sum() > self._reported else None

    def halt(self) -> Report | None:
        """Let every worker finish its iteration and end; return the progress since the last report, or None."""
        self._stop()
        return self._report() if self._counts[:, ITERATIONS].sum() > self._reported else None

    def _stop(self) -> None:
        self._workers.halt()
        self._train_wall_s, self._is_running = self._wall_s(), False

    @property
    def asynchrony(self) -> Asynchrony:
        """Staleness and restarts so far."""
        counts = self._counts.copy()
        updates = counts[:, UPDATES]
        return Asynchrony(
            staleness=self._staleness.sum(axis=0),
            mean_staleness=float(counts[:, LAG_SUM].sum() / max(updates.sum(), 1)),
            max_staleness=int(counts[:, LAG_MAX].max()),
            updates=updates,
            restarts=self._restarts + self._workers.restarts,
        )

    def _read_counts(self) -> NDArray[np.int64]:
        """Return the current counts `[K, 8]`, and update the totals from them."""
        counts = self._counts.copy()
        fence()  # the data that the counts cover is visible from here on
        total = counts.sum(axis=0).tolist()
        self.iteration, self.env_steps = total[ITERATIONS], total[ENV_STEPS]
        self._updates, self._episodes = total[UPDATES], total[EPISODES]
        return counts

    def _report(self) -> Report:
        counts, seconds = self._read_counts(), self._counters.seconds.view().copy()
        wall_s = self._wall_s()  # read after the workers' clocks, so that they are not ahead of it
        self._reported = self.iteration
        return Report(
            iteration=self.iteration,
            env_steps=self.env_steps,
            frames=self.env_steps * self._frame_skip,
            updates=self._updates,
            episodes=self._episodes,
            finished=self._finished.take(counts[:, EPISODES]),
            train_wall_s=wall_s,
            phases=_mean_phases(seconds, wall_s),
            losses=self._take_losses(),
        )

    def _wall_s(self) -> float:
        return self._train_wall_s + (perf_counter() - self._began if self._is_running else 0.0)

    def _take_losses(self) -> dict[str, float]:
        """Return mean losses of the iterations since the last report; without iterations, the previous means."""
        seen = self._counters.losses.view().sum(axis=0)
        sums, nums = seen - self._losses_seen
        self._losses_seen = seen
        if nums.any():
            self._losses = np.divide(sums, nums, out=np.full_like(sums, np.nan), where=nums > 0)
        return dict(zip(LOSSES, self._losses.tolist(), strict=True))

    def get_state(self) -> StateTree:
        """Return the totals, and a copy of the shared counters.

        Workers keep writing meanwhile, and each array is read once. So losses and staleness may include one or two
        more updates than the counts.
        """
        counts, seconds = self._read_counts(), self._counters.seconds.view().copy()
        counts[:, IS_IDLE] = 0
        wall_s = self._wall_s()  # read after the workers' clocks, so that they are not ahead of it
        phases = asdict(_mean_phases(seconds, wall_s))
        return {
            "iteration": self.iteration,
            "episodes": self._episodes,
            "env_steps": self.env_steps,
            "updates": self._updates,
            "train_wall_s": wall_s,
            "phases": {name: phases[name] for name in PHASES},
            "restarts": self._restarts + self._workers.restarts,
            "counters": {
                "counts": counts,
                "seconds": seconds,
                "losses": self._counters.losses.view().copy(),
                "staleness": self._staleness.copy(),
            },
        }

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`; call it before `run`. The session restores the latest finished episodes."""
        saved, counters = read_branch(state, "counters"), self._counters
        rows: dict[str, NDArray[np.generic]] = {
            "counts": self._counts,
            "seconds": counters.seconds.view(),
            "losses": counters.losses.view(),
            "staleness": self._staleness,
        }
        for name, row in rows.items():
            if name == "counts":  # whether a worker is idle is not restored
                self._counts[:, :IS_IDLE] = read_array(saved, name, row)[:, :IS_IDLE]
            else:
                row[:] = read_array(saved, name, row)
        if self._counts.min() < 0:
            raise ValueError("'counts' in the saved state has numbers below 0")
        self._restarts = read_count(state, "restarts")
        self._train_wall_s = read_amount(state, "train_wall_s")
        self._finished.skip(self._counts[:, EPISODES])
        self._losses_seen = counters.losses.view().sum(axis=0)
        self._read_counts()
        self._reported = self.iteration


def _mean_phases(seconds: NDArray[np.float64], wall_s: float) -> Phases:
    """Return the phase times `seconds` `[K, 8]`, averaged over the workers."""
    means = seconds.mean(axis=0)[: len(PHASES)].tolist()
    return Phases(**dict(zip(PHASES, means, strict=True)), other_s=wall_s - sum(means))
