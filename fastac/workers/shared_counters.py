"""The memory that A3C's workers share: parameters, optimiser statistics, and what each of them has done.

Parameters and optimiser statistics are everybody's to write, without locks. All else is in rows of which
each has one writer, its worker, so nothing is lost and nobody waits: counts of the whole run are sums over
rows. A worker that is killed leaves its row as it is, and the one that takes its place goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fastac.contract import Episodes, Merge, Phases
from fastac.shared_memory import SharedArray
from fastac.workers.shared_episodes import EpisodesWriter, SharedEpisodes
from fastac.workers.shared_parameters import SharedParameters
from fastac.workers.waiting import fence

# Staleness is counted up to this; beyond it all are one.
MAX_STALENESS = 63
ROOM = 4096  # finished episodes of a worker that wait for the first process; the oldest give way
# Columns of `counts`; beats are steps of the environments, finished or to come, which only tell that it lives.
UPDATES, ITERATIONS, ENV_STEPS, EPISODES, BEATS, LAG_SUM, LAG_MAX = range(7)
PHASES = tuple(field.name for field in fields(Phases) if field.name != "other_s")
LOSSES = (
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "grad_norm",
    "explained_variance",
    "learning_rate",
)
_LINE = 8  # numbers in a cache line; a worker's rows lie on lines of their own, and do not slow the others' down


@dataclass(frozen=True, slots=True)
class SharedCounters:
    """Shared by the first process and K workers; handed to each when it is started.

    Attributes:
        parameters: the model's, and the optimiser's statistics.
        control: `[2]`, whether to go, and whether to stop.
        counts: `[K, 8]`, see above: `LAG_SUM` and `LAG_MAX` are of staleness.
        seconds: `[K, 8]`, of `PHASES`.
        losses: `[K, 2, L]`, sums of the L `LOSSES`, and the number of iterations in each sum.
        staleness: `[K, 64]`, updates by how many updates of others lay between copy and step.
        episodes: the latest finished ones.
        statistics: by name, `[K, 2, 1 + 2 * D]`: two versions of what each worker has seen.
        versions: by name, `[K, 8]`, which of them is whole.
    """

    parameters: SharedParameters
    control: SharedArray[np.int64]
    counts: SharedArray[np.int64]
    seconds: SharedArray[np.float64]
    losses: SharedArray[np.float64]
    staleness: SharedArray[np.int64]
    episodes: SharedEpisodes
    statistics: Mapping[str, SharedArray[np.float64]]
    versions: Mapping[str, SharedArray[np.int64]]

    @classmethod
    def allocate(cls, workers: int, param_size: int, slots: Mapping[str, float], widths: Mapping[str, int]) -> Self:
        """Allocate for so many workers.

        Args:
            workers: K.
            param_size: P, the `flat_size` of the model.
            slots: the optimiser's statistics by name, and what they begin with.
            widths: running statistics by name, and their D.
        """
        real, whole = np.dtype(np.float64), np.dtype(np.int64)
        return cls(
            parameters=SharedParameters.allocate(param_size, slots),
            control=SharedArray((2,), whole),
            counts=SharedArray((workers, _LINE), whole),
            seconds=SharedArray((workers, _LINE), real),
            losses=SharedArray((workers, 2, len(LOSSES)), real, apart=True),
            staleness=SharedArray((workers, MAX_STALENESS + 1), whole),
            episodes=SharedEpisodes.allocate(workers, ROOM),
            statistics={
                name: SharedArray((workers, 2, 1 + 2 * width), real, apart=True) for name, width in widths.items()
            },
            versions={name: SharedArray((workers, _LINE), whole) for name in widths},
        )


class WorkerCounters:
    """A worker's rows: it writes its own, and reads the others'. An `UpdateCounter` and a `Group`."""

    size, rank = 1, 0  # as a group: it waits for nobody

    def __init__(self, counters: SharedCounters, worker: int) -> None:
        """Take the place of worker `worker`, from 0, where the one before left it."""
        counts = counters.counts.view()
        # Indexing a memoryview costs a third of indexing an array.
        self._all_counts, self._counts = counts.reshape(-1).data, counts[worker].data
        self._updates = range(UPDATES, counts.size, _LINE)
        self._env_steps = range(ENV_STEPS, counts.size, _LINE)
        self._staleness = counters.staleness.view()[worker].data
        self._seconds = counters.seconds.view()[worker].data
        self._sums, self._nums = (row.data for row in counters.losses.view()[worker])
        self._control = counters.control.view().data
        self._statistics = {name: array.view() for name, array in counters.statistics.items()}
        self._versions = {name: array.view()[:, 0] for name, array in counters.versions.items()}
        self._worker = worker
        self._episodes = EpisodesWriter(counters.episodes, worker)

    @property
    def may_go(self) -> bool:
        """Whether training has begun."""
        return bool(self._control[0])

    @property
    def shall_stop(self) -> bool:
        """Whether training is to end."""
        return bool(self._control[1])

    def total(self) -> int:
        """Everybody's updates so far; see `UpdateCounter`."""
        counts, total = self._all_counts, 0
        for at in self._updates:
            total += counts[at]
        return total

    def env_steps(self) -> int:
        """Everybody's environment steps so far."""
        counts, total = self._all_counts, 0
        for at in self._env_steps:
            total += counts[at]
        return total

    def add(self, staleness: int) -> None:
        """Count an update of this worker; see `UpdateCounter`."""
        counts = self._counts
        counts[UPDATES] += 1
        counts[LAG_SUM] += staleness
        counts[LAG_MAX] = max(counts[LAG_MAX], staleness)
        self._staleness[min(staleness, MAX_STALENESS)] += 1

    def beat(self) -> None:
        """Show that this worker lives."""
        self._counts[BEATS] += 1

    def phases(self) -> Phases:
        """Return the clocks where the row has them."""
        return Phases(**dict(zip(PHASES, self._seconds, strict=False)))

    def note(self, finished: Episodes, env_steps: int, losses: Mapping[str, float], phases: Phases) -> None:
        """Write down an iteration of this worker: what it found, and how long phases have taken so far."""
        for at, name in enumerate(LOSSES):
            value = losses[name]
            if value == value:  # an explained variance of nothing is not a number
                self._sums[at] += value
                self._nums[at] += 1.0
        for at, name in enumerate(PHASES):
            self._seconds[at] = getattr(phases, name)
        counts = self._counts
        self._episodes.put(finished, counts[EPISODES])
        fence()  # the counts say that the rest is there
        counts[EPISODES] += len(finished)
        counts[ENV_STEPS] += env_steps
        counts[ITERATIONS] += 1

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """See `Group`."""
        return array[None]

    def merge_statistics(
        self, name: str, known: NDArray[np.float64], part: NDArray[np.float64], merge: Merge
    ) -> NDArray[np.float64]:
        """See `Group`: take `part` into what this worker has seen, and join what all have seen so far.

        A new version is written beside the last whole one, so a worker that is killed in between does no harm.
        One that reads for longer than another takes for two rollouts may mix two of its versions, once.
        """
        statistics, versions = self._statistics[name], self._versions[name]
        version = int(versions[self._worker])
        statistics[self._worker, 1 - version] = merge(statistics[self._worker, version], part)
        fence()
        versions[self._worker] = 1 - version
        return merge_all_statistics(statistics, versions, merge)


def merge_all_statistics(
    statistics: NDArray[np.float64], versions: NDArray[np.int64], merge: Merge
) -> NDArray[np.float64]:
    """Join what all workers have seen: `statistics` `[K, 2, 1 + 2 * D]`, of which `versions` `[K]` are whole."""
    pooled: NDArray[np.float64] = np.zeros_like(statistics[0, 0])
    whole = versions.tolist()
    fence()
    for row, version in zip(statistics, whole, strict=True):
        pooled = merge(pooled, row[version].copy())
    return pooled
