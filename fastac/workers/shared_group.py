"""The memory that synchronous workers share, and the one thing they do with it: everybody sees everybody's numbers.

A worker writes its numbers into a place of its own, counts up, and waits until all have counted as
far. Places alternate between two sets, so nobody can overwrite what a slower worker still reads, and one
wait per exchange is enough. Waiting is spinning at first: an exchange between running workers costs a
few microseconds, where a lock or a pipe of the operating system costs fifty.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from fastac.contract import Episodes, Merge
from fastac.processes import Stopwatch
from fastac.shared_memory import SharedArray
from fastac.workers.extras import ExtrasReader, ExtrasWriter, SharedExtras
from fastac.workers.shared_parameters import SharedParameters

# Looks at the counters before the core is offered to somebody else: about 50 us.
_SPINS = 400
_WATCH_S = 0.02  # between looks at whether the others are alive


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Shared by K workers; handed to each when it is started. Each writes into cache lines of its own.

    Attributes:
        exchanged: `[2, K, bytes]`, numbers that everybody shows everybody.
        counts: `[K, 8]`, exchanges so far (a cache line each, or counting would slow the others' looks).
        command: `[2]`, how many commands were given, and the latest.
        done_fraction: `[1]`, of the iteration commanded.
        finished: `[K, 2, E]` float64, returns and lengths of the episodes that ended in an iteration.
        num_finished: `[K]`.
        parameters: the model's, and the optimiser's statistics.
        grads: `[K, P]`.
        extras: what episodes gave in `info`.
    """

    exchanged: SharedArray[np.uint8]
    counts: SharedArray[np.int64]
    command: SharedArray[np.int64]
    done_fraction: SharedArray[np.float64]
    finished: SharedArray[np.float64]
    num_finished: SharedArray[np.int64]
    parameters: SharedParameters
    grads: SharedArray[np.float32]
    extras: SharedExtras

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
            finished=SharedArray((size, 2, max_episodes), real, apart=True),
            num_finished=SharedArray((size,), whole, apart=True),
            parameters=SharedParameters.allocate(param_size, slots),
            grads=SharedArray((size, param_size), single, apart=True),
            extras=SharedExtras.allocate(size),
        )


_lock = threading.Lock()


def fence() -> None:
    """Let other cores see what was written before in that order; x86 does so by itself. Costs 0.1 us."""
    with _lock:
        pass
    with _lock:
        pass


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
        self._finished, self._num_finished = memory.finished.view(), memory.num_finished.view()
        self._extras_writer, self._extras_reader = ExtrasWriter(memory.extras, rank), ExtrasReader(memory.extras)
        self._counts = counts.reshape(-1).data  # indexing a memoryview costs a third of indexing an array
        self._own = rank * counts.shape[1]
        self._others = [r * counts.shape[1] for r in range(self.size) if r != rank]
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
                wait_until(partial(self._has_counted, other), self._watch)
        fence()

    def _has_counted(self, other: int) -> bool:
        return self._counts[other] >= self._turn

    def put_finished(self, episodes: Episodes) -> None:
        """Leave this worker's finished episodes where the first worker reads them after the next exchange."""
        num = self._num_finished[self.rank] = len(episodes)
        self._finished[self.rank, 0, :num], self._finished[self.rank, 1, :num] = episodes.return_, episodes.length
        self._extras_writer.put(episodes.extras)

    def get_finished(self) -> list[Episodes]:
        """Return the other workers' finished episodes, by rank; the first of them has what all gave in `info`."""
        found: list[Episodes] = []
        extras = self._extras_reader.take()
        for rank in range(self.size):
            if rank != self.rank:
                return_, length = self._finished[rank, :, : self._num_finished[rank]]
                found.append(Episodes(return_.copy(), length.astype(np.int64), None if found else extras))
        return found


def wait_until(is_over: Callable[[], bool], watch: Callable[[float], None]) -> None:
    """Wait: spinning, then offering the core to others, then sleeping longer and longer.

    Up to a millisecond while others work. After a second nobody does, and a worker that waits costs next to nothing.
    """
    for _ in range(_SPINS):
        if is_over():
            return
    waited, began = Stopwatch(), time.perf_counter()
    watched = began
    while not is_over():
        now = time.perf_counter()
        if now - watched > _WATCH_S:
            watch(waited.look())
            watched = now
        if now - began < 0.002:
            os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)
        else:
            waited_s = now - began
            time.sleep(min(0.001, waited_s / 20.0) if waited_s < 1.0 else min(0.05, waited_s / 100.0))
