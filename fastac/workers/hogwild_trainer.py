"""The asynchronous trainer, A3C: workers that learn without waiting, and one process that watches them.

Mnih et al. 2016, arXiv 1602.01783. Each worker collects and learns as one in step does, on a copy
of the parameters; its optimiser step goes to the shared ones, see `fastac.learning.optimizer.HogwildOptimizer`.
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

# Between reports: a part of the time so far, so that a run of a second is seen to end, but never longer than
# that it looks alive, nor so short that reporting would cost more than half a percent of a core.
_PERIOD_PART, _LEAST_PERIOD_S, _MOST_PERIOD_S = 0.05, 0.01, 0.1
_SILENT_S = 1.0  # and so long where there is nothing new


class HogwildTrainer:
    """Lets workers train, and reports what they have done so far.

    Attributes:
        iteration: iterations so far, of all workers together.
        env_steps: valid transitions so far, likewise.
    """

    def __init__(self, total_env_steps: int, frame_skip: int, counters: SharedCounters, workers: AsyncWorkers) -> None:
        """Take the parts; see `fastac.build`."""
        self._budget, self._frame_skip, self._counters, self._workers = total_env_steps, frame_skip, counters, workers
        self._counts, self._staleness = counters.counts.view(), counters.staleness.view()
        self._finished = EpisodesReader(counters.episodes, self._counts[:, EPISODES])
        self._losses_seen = counters.losses.view().sum(axis=0)  # [2, L]
        self._losses = np.full(len(LOSSES), np.nan)
        self._restarts = 0  # before this process
        self._train_wall_s = self._began = 0.0
        self._is_running = False
        self._reported = 0
        self._read_counts()

    def run(self) -> Generator[Report, None, None]:
        """Yield reports, at first every hundredth and later every tenth of a second, until the budget is spent.

        Workers do not wait for the consumer, whose time is training time. Parameters are shared ones of the
        moment: `fastac.build` copies them when it saves.

        Raises:
            EnvFailure, WorkerFailure: more workers were lost than are started again.
            NonFiniteError: a loss or gradient is not finite; that update was not applied.
        """
        if self.env_steps >= self._budget:
            return
        self._began, self._is_running = perf_counter(), True
        reported_at: float | None = None  # nothing is reported before the first iteration, of a resumed run either
        self._workers.begin()
        try:
            while not self._workers.are_done:
                elapsed_s = perf_counter() - self._began
                self._workers.watch(min(_MOST_PERIOD_S, max(_LEAST_PERIOD_S, _PERIOD_PART * elapsed_s)))
                is_news = self._counts[:, ITERATIONS].sum() > self._reported
                # Now and then also without news: a consumer who wants to stop is heard after a report.
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

    def halt(self) -> Report | None:
        """Let every worker finish its iteration and end; return what was done since the last report."""
        self._stop()
        return self._report() if self._counts[:, ITERATIONS].sum() > self._reported else None

    def _stop(self) -> None:
        self._workers.halt()
        self._train_wall_s, self._is_running = self._wall_s(), False

    @property
    def asynchrony(self) -> Asynchrony:
        """Measured so far."""
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
        """Return the counts `[K, 8]` of this moment, and take in what they come to."""
        counts = self._counts.copy()
        fence()  # what they speak of has been written before them
        total = counts.sum(axis=0).tolist()
        self.iteration, self.env_steps = total[ITERATIONS], total[ENV_STEPS]
        self._updates, self._episodes = total[UPDATES], total[EPISODES]
        return counts

    def _report(self) -> Report:
        counts, seconds = self._read_counts(), self._counters.seconds.view().copy()
        wall_s = self._wall_s()  # after the workers' clocks, which must not be ahead of it
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
        """Return means over the iterations since the last report, the last known ones where there were none."""
        seen = self._counters.losses.view().sum(axis=0)
        sums, nums = seen - self._losses_seen
        self._losses_seen = seen
        if nums.any():
            self._losses = np.divide(sums, nums, out=np.full_like(sums, np.nan), where=nums > 0)
        return dict(zip(LOSSES, self._losses.tolist(), strict=True))

    def get_state(self) -> StateTree:
        """The counters, and the workers' rows of the shared counters.

        Workers write on meanwhile, so each row is read once: losses and staleness may be of an update or two more
        than are counted.
        """
        counts, seconds = self._read_counts(), self._counters.seconds.view().copy()
        wall_s = self._wall_s()  # after the workers' clocks, which must not be ahead of it
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
        """Continue from `get_state`; called before `run`. Which episodes are finished is in the session's window."""
        saved, counters = read_branch(state, "counters"), self._counters
        rows: dict[str, NDArray[np.generic]] = {
            "counts": self._counts,
            "seconds": counters.seconds.view(),
            "losses": counters.losses.view(),
            "staleness": self._staleness,
        }
        for name, row in rows.items():
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
    """Return the workers' clocks `seconds` `[K, 8]`, averaged over them."""
    means = seconds.mean(axis=0)[: len(PHASES)].tolist()
    return Phases(**dict(zip(PHASES, means, strict=True)), other_s=wall_s - sum(means))
