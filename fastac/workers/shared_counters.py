"""The memory that A3C's workers share: parameters, optimiser statistics, and each worker's progress.

All workers write the parameters and optimiser statistics. The rest is in rows with one writer each, so no count is
lost and no worker waits. A count of the whole run is the sum over the rows. If a worker is killed, its replacement
continues its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastac.contract import Episodes, Merge, Phases
from fastac.shared_memory import SharedArray
from fastac.workers.shared_episodes import EpisodesWriter, SharedEpisodes
from fastac.workers.shared_parameters import SharedParameters
from fastac.workers.waiting import fence

# The last bin of the staleness histogram; it also counts all larger values.
MAX_STALENESS = 63
ROOM = 4096  # unread finished episodes that a worker's buffer holds; new ones overwrite the oldest
# Columns of `counts`. BEATS counts steps and resets of the environments, begun or ended, only as a sign of life.
# IS_IDLE is 1 while a worker waits to train.
UPDATES, ITERATIONS, ENV_STEPS, EPISODES, BEATS, LAG_SUM, LAG_MAX, IS_IDLE = range(8)
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
_LINE = 8  # numbers in a cache line; no two workers write into the same line, which would slow both down


@dataclass(frozen=True, slots=True)
class SharedCounters:
    """Memory shared by the first process and K workers; each worker gets it when it starts.

    Attributes:
        parameters: model parameters and optimiser statistics.
        control: `[2]`, flags: train (else wait), stop training.
        counts: `[K, 8]`, see above; `LAG_SUM` and `LAG_MAX` are the sum and the maximum of staleness.
        seconds: `[K, 8]`, time spent in each of `PHASES`.
        losses: `[K, 2, L]`, sums of the L `LOSSES`, and the number of iterations in each sum.
        staleness: `[K, 64]`, histogram of updates by the number of other workers' updates between copy and step.
        episodes: the latest finished episodes.
        statistics: by name, `[K, 2, 1 + 2 * D]`: running statistics of each worker's own data, in two versions.
        versions: by name, `[K, 8]`: column 0 is the index of the complete version.
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
        """Allocate the memory.

        Args:
            workers: K.
            param_size: P, the `flat_size` of the model.
            slots: initial values of the optimiser's statistics, by name.
            widths: D of each running statistic, by name.
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
    """A worker's access to the counters: it writes its own rows and reads all. An `UpdateCounter` and a `Group`."""

    size, rank, shards = 1, 0, range(1)  # a `Group` of one, since A3C workers do not wait for each other

    def __init__(self, counters: SharedCounters, worker: int) -> None:
        """Continue the rows of worker number `worker`, counted from 0; a lost worker may have begun them."""
        counts = counters.counts.view()
        # Indexing a memoryview costs a third as much as indexing an array.
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
        """Whether to train, and not to wait."""
        return bool(self._control[0])

    @property
    def shall_stop(self) -> bool:
        """Whether training must end."""
        return bool(self._control[1])

    def total(self) -> int:
        """Return the updates of all workers so far; see `UpdateCounter`."""
        counts, total = self._all_counts, 0
        for at in self._updates:
            total += counts[at]
        return total

    def env_steps(self) -> int:
        """Return the environment steps of all workers so far."""
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

    def tell_idle(self, is_idle: bool) -> None:
        """Say whether this worker waits to train; what it has written before is visible to who reads that."""
        fence()
        self._counts[IS_IDLE] = int(is_idle)
        fence()

    def beat(self) -> None:
        """Count a sign of life of this worker."""
        self._counts[BEATS] += 1

    def phases(self) -> Phases:
        """Return this worker's phase times so far."""
        return Phases(**dict(zip(PHASES, self._seconds, strict=False)))

    def note(self, finished: Episodes, env_steps: int, losses: Mapping[str, float], phases: Phases) -> None:
        """Record an iteration of this worker: its episodes, steps and losses, and the phase times so far."""
        for at, name in enumerate(LOSSES):
            value = losses[name]
            if value == value:  # skip NaN: the explained variance may be undefined
                self._sums[at] += value
                self._nums[at] += 1.0
        for at, name in enumerate(PHASES):
            self._seconds[at] = getattr(phases, name)
        counts = self._counts
        self._episodes.put(finished, counts[EPISODES])
        fence()  # a reader that sees the new counts must also see the data
        counts[EPISODES] += len(finished)
        counts[ENV_STEPS] += env_steps
        counts[ITERATIONS] += 1

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """See `Group`."""
        return array

    def prepare_gather(self, array: Tensor) -> tuple[list[Callable[[], object]], Tensor]:
        """See `Group`."""
        return [], array

    def end_iteration(self) -> None:
        """Do nothing: these workers have nothing to settle."""

    def wait(self) -> None:
        """See `Group`: no worker waits for another."""

    def merge_statistics(
        self, name: str, known: NDArray[np.float64], parts: NDArray[np.float64], merge: Merge
    ) -> NDArray[np.float64]:
        """See `Group`: merge the part into this worker's own statistics; return those of all workers, merged.

        The new version is written beside the last complete one, so a worker killed during the write does no harm.
        If another worker finishes two rollouts while this one reads, the result may once mix two of its versions.
        """
        statistics, versions = self._statistics[name], self._versions[name]
        version = int(versions[self._worker])
        statistics[self._worker, 1 - version] = merge(statistics[self._worker, version], parts[0])
        fence()
        versions[self._worker] = 1 - version
        return merge_all_statistics(statistics, versions, merge)


def merge_all_statistics(
    statistics: NDArray[np.float64], versions: NDArray[np.int64], merge: Merge
) -> NDArray[np.float64]:
    """Merge all workers' `statistics` `[K, 2, 1 + 2 * D]`; `versions` `[K]` are the indices of the complete ones."""
    pooled: NDArray[np.float64] = np.zeros_like(statistics[0, 0])
    whole = versions.tolist()
    fence()
    for row, version in zip(statistics, whole, strict=True):
        pooled = merge(pooled, row[version].copy())
    return pooled
