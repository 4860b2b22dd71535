"""The memory that in-step workers share, and how they wait for each other: an all-gather of small arrays.

In an exchange a worker writes the rows of its shards, increments its count, and waits until all counts have reached the
same value. Rows alternate between two buffers, so a fast worker cannot overwrite numbers that a slow one still reads.
One wait per exchange is therefore enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac.config import ExchangeName
from fastac.contract import Merge
from fastac.learning.host_sum import node_shape
from fastac.learning.optimizer import SharedVectors, num_squares
from fastac.memory import whole_lines
from fastac.shared_memory import SharedArray
from fastac.workers.division import Division
from fastac.workers.hosts import Hosts
from fastac.workers.shared_parameters import SharedParameters
from fastac.workers.waiting import fence, wait_until

_FEW_NUMBERS = 2**17  # in the gradients of all shards


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Memory shared by a host's K workers; each worker gets it when it starts, and writes into its own lines.

    Attributes:
        division: which shards each host and each worker has: S of all hosts, L of this one.
        exchanged: `[2, S, bytes]`, numbers that the workers exchange.
        counts: `[K, 8]`, exchanges so far; a cache line each, so that writing one does not slow reads of the others.
        parameters: model parameters and optimiser statistics; None if they are so few that each worker keeps its own.
        squares: of the blocks of the summed gradient, if parameters are shared.
        grads: `[1 or 2, L, P]`, a gradient per shard, see `SharedOptimizer`.
        nodes: `[R, Q]`, what hosts exchange of their gradients, see `HostSum`; empty for one host.
        own_node: the first of them that is this host's.
        is_paused: `[1]`, whether all hosts pause after this iteration.
        waited_s: `[K, 8]`, seconds that each worker has waited for others in exchanges; a cache line each.
    """

    division: Division
    exchanged: SharedArray[np.uint8]
    counts: SharedArray[np.int64]
    parameters: SharedParameters | None
    squares: SharedArray[np.float64]
    grads: SharedArray[np.float32]
    nodes: SharedArray[np.float32]
    own_node: int
    is_paused: SharedArray[np.bool_]
    waited_s: SharedArray[np.float64]

    @classmethod
    def allocate(
        cls,
        division: Division,
        most_bytes: int,
        param_size: int,
        slots: Mapping[str, float],
        exchange: ExchangeName = "exact",
        sync_every: int = 1,
    ) -> GroupMemory:
        """Allocate for in-step workers.

        Args:
            division: the shards of each.
            most_bytes: size of the largest row that is exchanged of a shard.
            param_size: P, the `flat_size` of the model.
            slots: initial values of the optimiser's statistics, by name.
            exchange: how hosts exchange gradients.
            sync_every: updates after which they average parameters, instead of exchanging gradients; 1: never.
        """
        # With few parameters an exchange costs more than it costs to update all of them, and to sum all gradients.
        hosts, shards, size = division.hosts, len(division.own), len(division.workers)
        is_split, has_hosts = shards * param_size > _FEW_NUMBERS and size > 1, len(hosts) > 1
        places = 1 if is_split or has_hosts else 2
        rows, columns = node_shape(exchange, sync_every, param_size, len(slots), hosts) if has_hosts else (0, 0)
        real, single = np.dtype(np.float64), np.dtype(np.float32)
        return cls(
            division=division,
            exchanged=SharedArray((2, division.num_shards, -(-most_bytes // 64) * 64), np.dtype(np.uint8)),
            counts=SharedArray((size, 8), np.dtype(np.int64)),
            parameters=SharedParameters.allocate(param_size, slots) if is_split else None,
            squares=SharedArray((num_squares(param_size),), real),
            grads=SharedArray((places, 0 if has_hosts and shards == 1 else shards, param_size), single),
            nodes=SharedArray((rows, whole_lines(columns, single.itemsize)), single),
            own_node=division.host * (rows // len(hosts)) if exchange == "exact" and sync_every == 1 else 0,
            is_paused=SharedArray((1,), np.dtype(np.bool_)),
            waited_s=SharedArray((size, 8), real),
        )


class SharedGroup:
    """A `Group` over shared memory.

    Attributes:
        division: which shards each host and each worker has.
        hosts: the other hosts, if there are any and this worker talks to them.
        vectors: the shared model parameters and optimiser statistics, if they are shared.
        grads: `[1 or 2, L, P]`, the gradients of this host's shards.
        nodes: `[R, Q]`, what hosts exchange of their gradients, see `HostSum`; empty for one host.
        before_pause: see `HostGroup`.
    """

    def __init__(
        self, memory: GroupMemory, rank: int, watch: Callable[[float], None], hosts: Hosts | None = None
    ) -> None:
        """Join as worker `rank`.

        Args:
            memory: shared by all workers of this host.
            rank: this worker's number among them, from 0.
            watch: called repeatedly during a wait, with the seconds waited so far; raises to abort the wait.
            hosts: the other hosts; given to worker 0 alone.
        """
        self.division, self.hosts = memory.division, hosts
        self.before_pause: Callable[[], None] = lambda: None
        self._is_paused = memory.is_paused.view()
        self.vectors = (
            None
            if memory.parameters is None
            else SharedVectors(memory.parameters.vectors(), torch.from_numpy(memory.squares.view()))
        )
        self.grads, self.nodes = torch.from_numpy(memory.grads.view()), torch.from_numpy(memory.nodes.view())
        if not self.grads.shape[1]:  # this host's only shard has its gradient where it is sent from
            own = memory.own_node
            self.grads = self.nodes[None, own : own + 1, : self.grads.shape[2]]
        self._exchanged, counts = memory.exchanged.view(), memory.counts.view()
        self.size, self.rank = len(counts), rank
        self._num_shards = self._exchanged.shape[1]
        self.shards = self.division.workers[rank]
        self._counts = counts.reshape(-1).data  # indexing a memoryview costs a third of indexing an array
        self._places = [r * counts.shape[1] for r in range(self.size)]
        self._own = self._places[rank]
        self._others = [place for r, place in enumerate(self._places) if r != rank]
        self._waited_s = memory.waited_s.view()[:, 0]
        self._watch = watch
        self._turn = self._gathers = 0
        self._views: dict[tuple[int, str, tuple[int, ...]], NDArray[np.generic]] = {}

    def move_gradients(self, device: torch.device) -> None:
        """Have the gradients of a host's only worker on an accelerator."""
        self.nodes, self.grads = self.nodes.to(device), self.grads.to(device)

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """See `Group`."""
        everyones = self._view(array)
        everyones[self.shards.start : self.shards.stop] = array
        self._gathers += 1
        self.wait()
        if len(self.division.hosts) > 1:
            if self.hosts is not None:
                self.hosts.gather_rows(everyones, self.division.hosts)
                self._is_paused[0] = self.hosts.is_paused
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

    def end_iteration(self) -> None:
        """See `Group`."""
        if self._is_paused[0]:
            self.before_pause()

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
        """Return the present buffer as an array `[S, *shape]` for rows like those of `array`; views are cached."""
        key = (self._gathers % 2, array.dtype.str, array.shape)
        if key not in self._views:
            row_bytes = array[0].nbytes
            assert row_bytes <= self._exchanged.shape[-1], "there is too little room for what is exchanged"
            raw = self._exchanged[self._gathers % 2, :, :row_bytes]
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
