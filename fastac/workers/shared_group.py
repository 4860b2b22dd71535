"""The memory that in-step workers share, and how they wait for each other: an all-gather of small arrays.

In an exchange a worker writes the rows of its shards, increments its count, and waits until all counts have reached the
same value. Rows alternate between two buffers, so a fast worker cannot overwrite numbers that a slow one still reads.
One wait per exchange is therefore enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac.contract import Merge
from fastac.learning.optimizer import SharedVectors, num_squares
from fastac.shared_memory import SharedArray
from fastac.workers.shared_episodes import SharedEpisodes
from fastac.workers.shared_parameters import SharedParameters
from fastac.workers.waiting import fence, wait_until

_FEW_NUMBERS = 2**17  # in the gradients of all shards


def divide_shards(num_shards: int, workers: int) -> list[range]:
    """Return which shards each worker has: numbers that follow each other, as evenly as possible."""
    edges = [num_shards * worker // workers for worker in range(workers + 1)]
    return [range(begin, end) for begin, end in pairwise(edges)]


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Memory shared by K workers with S shards; each worker gets it when it starts, and writes into its own lines.

    Attributes:
        exchanged: `[2, S, bytes]`, numbers that the workers exchange.
        counts: `[K, 8]`, exchanges so far; a cache line each, so that writing one does not slow reads of the others.
        command: `[2]`, the number of commands given, and the latest command.
        done_fraction: `[1]`, share of the budget spent before the current iteration.
        episodes: finished episodes of workers 1 to K-1.
        num_episodes: `[K]`, finished episodes so far; 0 for worker 0.
        parameters: model parameters and optimiser statistics; None if they are so few that each worker keeps its own.
        squares: of the blocks of the summed gradient, if parameters are shared.
        grads: `[1 or 2, S, P]`, a gradient per shard, see `SharedOptimizer`.
        waited_s: `[K, 8]`, seconds that each worker has waited for others in exchanges; a cache line each.
    """

    exchanged: SharedArray[np.uint8]
    counts: SharedArray[np.int64]
    command: SharedArray[np.int64]
    done_fraction: SharedArray[np.float64]
    episodes: SharedEpisodes
    num_episodes: SharedArray[np.int64]
    parameters: SharedParameters | None
    squares: SharedArray[np.float64]
    grads: SharedArray[np.float32]
    waited_s: SharedArray[np.float64]

    @classmethod
    def allocate(
        cls,
        size: int,
        num_shards: int,
        most_bytes: int,
        max_episodes: int,
        param_size: int,
        slots: Mapping[str, float],
    ) -> GroupMemory:
        """Allocate for in-step workers.

        Args:
            size: K.
            num_shards: S.
            most_bytes: size of the largest row that is exchanged of a shard.
            max_episodes: E, the most episodes that a worker can finish in an iteration.
            param_size: P, the `flat_size` of the model.
            slots: initial values of the optimiser's statistics, by name.
        """
        # With few parameters an exchange costs more than it costs to update all of them, and to sum all gradients.
        is_split = num_shards * param_size > _FEW_NUMBERS
        whole, real, single = np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.float32)
        return cls(
            exchanged=SharedArray((2, num_shards, -(-most_bytes // 64) * 64), np.dtype(np.uint8)),
            counts=SharedArray((size, 8), whole),
            command=SharedArray((2,), whole),
            done_fraction=SharedArray((1,), real),
            episodes=SharedEpisodes.allocate(size, max_episodes),
            num_episodes=SharedArray((size,), whole, apart=True),
            parameters=SharedParameters.allocate(param_size, slots) if is_split else None,
            squares=SharedArray((num_squares(param_size),), real),
            grads=SharedArray((1 if is_split else 2, num_shards, param_size), single),
            waited_s=SharedArray((size, 8), real),
        )


class SharedGroup:
    """A `Group` over shared memory.

    Attributes:
        vectors: the shared model parameters and optimiser statistics, if they are shared.
        grads: `[1 or 2, S, P]`, the gradients of all shards.
    """

    def __init__(self, memory: GroupMemory, rank: int, watch: Callable[[float], None]) -> None:
        """Join as worker `rank`.

        Args:
            memory: shared by all workers.
            rank: this worker's number, from 0.
            watch: called repeatedly during a wait, with the seconds waited so far; raises to abort the wait.
        """
        self.vectors = (
            None
            if memory.parameters is None
            else SharedVectors(memory.parameters.vectors(), torch.from_numpy(memory.squares.view()))
        )
        self.grads = torch.from_numpy(memory.grads.view())
        self._exchanged, counts = memory.exchanged.view(), memory.counts.view()
        self.size, self.rank = len(counts), rank
        self._num_shards = self._exchanged.shape[1]
        self.shards = divide_shards(self._num_shards, self.size)[rank]
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
        everyones[self.shards.start : self.shards.stop] = array
        self.wait()
        return everyones

    def wait(self) -> None:
        """See `Group`: increment the count, after the fence has made what was written visible to other cores."""
        self._turn += 1
        fence()
        self._counts[self._own] = self._turn
        for other in self._others:
            if self._counts[other] < self._turn:
                began = perf_counter()
                wait_until(partial(self._has_counted, other), self._watch)
                self._waited_s[self.rank] += perf_counter() - began
        fence()

    def prepare_gather(self, array: Tensor) -> tuple[list[Callable[[], object]], Tensor]:
        """See `Group`."""
        own, everyones = array.numpy(), torch.empty(self._num_shards, *array.shape[1:], dtype=array.dtype)
        target = everyones.numpy()

        def gather() -> None:
            target[:] = self.gather(own)

        return [gather], everyones

    def merge_statistics(
        self, name: str, known: NDArray[np.float64], parts: NDArray[np.float64], merge: Merge
    ) -> NDArray[np.float64]:
        """See `Group`: `known` is the same in all workers."""
        return reduce(merge, self.gather(parts), known)

    def _view(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return this turn's buffer as an array `[S, *shape]` for rows like those of `array`; views are cached."""
        key = (self._turn % 2, array.dtype.str, array.shape)
        if key not in self._views:
            row_bytes = array[0].nbytes
            assert row_bytes <= self._exchanged.shape[-1], "there is too little room for what is exchanged"
            raw = self._exchanged[self._turn % 2, :, :row_bytes]
            self._views[key] = raw.view(array.dtype).reshape(self._num_shards, *array.shape[1:])
        return self._views[key]

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
