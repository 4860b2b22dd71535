"""The memory that synchronous workers share, and the one thing they do with it: everybody sees everybody's numbers.

A worker writes its numbers into a place of its own, counts up, and waits until all have counted as
far. Places alternate between two sets, so nobody can overwrite what a slower worker still reads, and one
wait per exchange is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from fastac.contract import Merge
from fastac.shared_memory import SharedArray
from fastac.workers.shared_episodes import SharedEpisodes
from fastac.workers.shared_parameters import SharedParameters
from fastac.workers.waiting import fence, wait_until


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Shared by K workers; handed to each when it is started. Each writes into cache lines of its own.

    Attributes:
        exchanged: `[2, K, bytes]`, numbers that everybody shows everybody.
        counts: `[K, 8]`, exchanges so far (a cache line each, or counting would slow the others' looks).
        command: `[2]`, how many commands were given, and the latest.
        done_fraction: `[1]`, of the iteration commanded.
        episodes: those that ended with other workers than the first.
        num_episodes: `[K]`, how many there were so far.
        parameters: the model's, and the optimiser's statistics.
        grads: `[K, P]`.
        waited_s: `[K, 8]`, seconds that each worker has waited for others in exchanges (a cache line each).
    """

    exchanged: SharedArray[np.uint8]
    counts: SharedArray[np.int64]
    command: SharedArray[np.int64]
    done_fraction: SharedArray[np.float64]
    episodes: SharedEpisodes
    num_episodes: SharedArray[np.int64]
    parameters: SharedParameters
    grads: SharedArray[np.float32]
    waited_s: SharedArray[np.float64]

    @classmethod
    def allocate(
        cls,
        size: int,
        most_bytes: int,
        max_episodes: int,
        param_size: int,
        slots: Mapping[str, float],
    ) -> GroupMemory:
        """Allocate for workers in step.

        Args:
            size: K.
            most_bytes: of the largest thing that they exchange.
            max_episodes: E, the most that each finds in an iteration.
            param_size: P, the `flat_size` of the model.
            slots: the optimiser's statistics by name, and what they begin with.
        """
        whole, real, single = np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.float32)
        return cls(
            exchanged=SharedArray((2, size, -(-most_bytes // 64) * 64), np.dtype(np.uint8)),
            counts=SharedArray((size, 8), whole),
            command=SharedArray((2,), whole),
            done_fraction=SharedArray((1,), real),
            episodes=SharedEpisodes.allocate(size, max_episodes),
            num_episodes=SharedArray((size,), whole, apart=True),
            parameters=SharedParameters.allocate(param_size, slots),
            grads=SharedArray((size, param_size), single, apart=True),
            waited_s=SharedArray((size, 8), real),
        )


class SharedGroup:
    """A `Group` over shared memory.

    Attributes:
        vectors: the model's parameters and the optimiser's statistics, everybody's.
        grads: `[K, P]`, everybody's gradient.
    """

    def __init__(self, memory: GroupMemory, rank: int, watch: Callable[[float], None]) -> None:
        """Join as worker `rank`.

        Args:
            memory: shared by all.
            rank: from 0.
            watch: called now and then while waiting, with the seconds waited so far; raises if waiting is in vain.
        """
        self.vectors, self.grads = memory.parameters.vectors(), torch.from_numpy(memory.grads.view())
        self._exchanged, counts = memory.exchanged.view(), memory.counts.view()
        self.size, self.rank = len(counts), rank
        self._counts = counts.reshape(-1).data  # indexing a memoryview costs a third of indexing an array
        self._places = [r * counts.shape[1] for r in range(self.size)]
        self._own = self._places[rank]
        self._others = [place for r, place in enumerate(self._places) if r != rank]
        self._waited_s = memory.waited_s.view()[:, 0]
        self._watch = watch
        self._turn = 0
        self._views: dict[tuple[int, str, tuple[int, ...]], NDArray[np.generic]] = {}

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """See `Group`."""
        everyones = self._view(array)
        everyones[self.rank] = array
        self._turn += 1
        self._publish()
        self._wait()
        return everyones

    def merge_statistics(
        self, name: str, known: NDArray[np.float64], part: NDArray[np.float64], merge: Merge
    ) -> NDArray[np.float64]:
        """See `Group`: everybody knew the same before."""
        for everyones in self.gather(part):
            known = merge(known, everyones)
        return known

    def _view(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return this turn's numbers as `[K, *shape]` arrays like `array`; made once per shape and turn."""
        key = (self._turn % 2, array.dtype.str, array.shape)
        if key not in self._views:
            assert array.nbytes <= self._exchanged.shape[-1], "there is too little room for what is exchanged"
            raw = self._exchanged[self._turn % 2, :, : array.nbytes]
            self._views[key] = raw.view(array.dtype).reshape(self.size, *array.shape)
        return self._views[key]

    def _publish(self) -> None:
        """Count up, after the numbers are written in the eyes of the other cores too."""
        fence()
        self._counts[self._own] = self._turn

    def _wait(self) -> None:
        for other in self._others:
            if self._counts[other] < self._turn:
                began = perf_counter()
                wait_until(partial(self._has_counted, other), self._watch)
                self._waited_s[self.rank] += perf_counter() - began
        fence()

    @property
    def waited_s(self) -> list[float]:
        """Seconds that each worker has waited for the others so far, by rank."""
        waited_s: list[float] = self._waited_s.tolist()
        return waited_s

    @property
    def late_ranks(self) -> list[int]:
        """The workers that this one waits for now."""
        return [rank for rank, place in enumerate(self._places) if self._counts[place] < self._turn]

    def _has_counted(self, other: int) -> bool:
        return self._counts[other] >= self._turn
