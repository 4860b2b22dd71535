"""Adds up the gradients of all shards if they are on several hosts.

Each host adds up its own, its workers a part of the vector each. One worker of each host exchanges the sums, together
with the loss terms, as one vector per host. Then every worker adds up what has come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fastac.config import ExchangeName
from fastac.contract import Group
from fastac.kernels import Op, num_blocks, sum_gradients
from fastac.learning.objectives import TERMS
from fastac.learning.shard_tree import merges, subtrees

_COLUMNS = 2 * len(TERMS)  # float32 columns that hold the float64 loss terms of a shard


class HostGroup(Group, Protocol):
    """A group whose shards are on several hosts."""

    before_pause: Callable[[], None]  # called at the end of an iteration after which the run may be saved or end


class Exchange(Protocol):
    """What a host's worker that talks to others does with the vectors of all hosts."""

    def gather(self, parts: list[Tensor], own: Tensor) -> None:
        """Fill `parts`, one of each host, from the `own` part of each."""

    def add_up(self, vector: Tensor) -> None:
        """Add up a vector over all hosts, in place."""


class HostSum(ABC):
    """Adds up the gradients of all shards; how the hosts exchange them is up to each kind.

    Attributes:
        first_shard: of this host.
        num_columns: Q, the columns of a vector that is exchanged.
    """

    def __init__(
        self, nodes: Tensor, grads: Tensor, hosts: Sequence[range], group: HostGroup, exchange: Exchange | None
    ) -> None:
        """Take the memory.

        Args:
            nodes: `[R, Q]` in memory that the host's workers share, see `node_shape`: vectors, each the P elements of a
                gradient and loss terms.
            grads: `[L, P]`, likewise: the gradients of this host's shards.
            hosts: the shards of each host.
            group: this worker's shards.
            exchange: the other hosts, if this worker is the one that talks to them.
        """
        self._nodes, self._grads, self._hosts, self._group, self._exchange = nodes, grads, hosts, group, exchange
        self._num_shards, self._size = hosts[-1].stop, grads.shape[1]
        self._host = next(host for host, shards in enumerate(hosts) if group.shards.start in shards)
        self.first_shard, self.num_columns = hosts[self._host].start, nodes.shape[1]

    def prepare(
        self, parts: Tensor, own_part: tuple[int, int], part: tuple[int, int], total: Tensor, squares: Tensor
    ) -> tuple[list[Op], Tensor]:
        """Return the calls of a sum, and where the loss terms of all shards are after them, `[S, 5]` float64.

        Args:
            parts: `[l, 5]` float64, the loss terms of this worker's shards.
            own_part: begin and end of what this worker adds up of the host's gradients.
            part: begin and end of what it adds up of all.
            total: `[Q]`, written: the sum.
            squares: written: the sums of squares of its blocks.
        """
        everyones = torch.zeros(self._num_shards, len(TERMS), dtype=torch.float64)
        wait = self._group.wait
        talk = [] if self._exchange is None else [partial(self._talk, self._exchange)]
        return [
            wait,
            partial(self._put_terms, parts),
            *self._sum_own(*own_part),
            wait,
            *talk,
            wait,
            partial(self._take_terms, everyones),
            sum_gradients.prepare(self._left, *part, total, squares),
        ], everyones

    @property
    def _left(self) -> Tensor:
        """The vectors to add up after the exchange."""
        return self._nodes[:1]

    @abstractmethod
    def _put_terms(self, parts: Tensor) -> None:
        """Put this worker's loss terms into what is exchanged."""

    @abstractmethod
    def _take_terms(self, everyones: Tensor) -> None:
        """Take the loss terms of all shards from what was exchanged."""

    @abstractmethod
    def _talk(self, exchange: Exchange) -> None:
        """Exchange the vectors; the host's other workers wait."""

    def _sum_own(self, begin: int, end: int) -> list[Op]:
        """Return the calls that add up this worker's part of the host's gradients."""
        return self._sum_shards(self._hosts[self._host], self._nodes[0], begin, end)

    def _sum_shards(self, shards: range, target: Tensor, begin: int, end: int) -> list[Op]:
        """Return the calls that add up a part of the gradients of some of this host's shards."""
        rows = self._grads[shards.start - self.first_shard : shards.stop - self.first_shard]
        if rows.data_ptr() == target.data_ptr():  # a host's only shard computes its gradient there
            return []
        unused = torch.zeros(num_blocks(self._size), dtype=torch.float64, device=rows.device)
        return [sum_gradients.prepare(rows, begin, end, target[: self._size], unused)]

    def after_update(self, vectors: Sequence[Tensor], is_shared: bool) -> list[Op]:
        """Return the calls after an update of `vectors`, which the host's workers share or have one each."""
        return []


class ExactSum(HostSum):
    """The same bits as if one host had all shards.

    A host sends the sums of its subtrees, see `fastac.learning.shard_tree`: R = H times the most of any host.
    """

    def __init__(
        self, nodes: Tensor, grads: Tensor, hosts: Sequence[range], group: HostGroup, exchange: Exchange | None
    ) -> None:
        """See `HostSum`."""
        super().__init__(nodes, grads, hosts, group, exchange)
        self._per_host = len(nodes) // len(hosts)
        self._own = self._host * self._per_host  # row of this host's first node
        # The nodes of all hosts, in order, and where they are.
        self._ranges = [subtrees(shards, self._num_shards) for shards in hosts]
        self._places = [host * self._per_host + k for host, found in enumerate(self._ranges) for k in range(len(found))]
        size = len(self._ranges[0][0])
        every = [node for found in self._ranges for node in found]
        # If each host has one subtree, all of the same level, the tree above them is that of as many shards.
        is_level = self._per_host == 1 and all(node.start == k * size for k, node in enumerate(every))
        self._merges = [] if is_level else merges(every, self._num_shards)
        self._num_left = len(every) if is_level else 1

    @property
    def _left(self) -> Tensor:
        return self._nodes[: self._num_left]

    def _put_terms(self, parts: Tensor) -> None:
        self._terms(self._own, len(parts), self._group.shards.start - self.first_shard).copy_(parts)

    def _take_terms(self, everyones: Tensor) -> None:
        for host, shards in enumerate(self._hosts):
            everyones[shards.start : shards.stop] = self._terms(host * self._per_host, len(shards), 0)

    def _terms(self, row: int, count: int, first: int) -> Tensor:
        """Return the view of the loss terms of a host's shards, `[count, 5]`, from its `first` on."""
        return _terms_of(self._nodes[row], self._size, count, first)

    def _sum_own(self, begin: int, end: int) -> list[Op]:
        nodes = enumerate(self._ranges[self._host], start=self._own)
        return [call for row, node in nodes for call in self._sum_shards(node, self._nodes[row], begin, end)]

    def _talk(self, exchange: Exchange) -> None:
        parts = list(self._nodes.view(len(self._hosts), -1))
        exchange.gather(parts, parts[self._host])
        gradients = self._nodes[:, : self._size]  # without the loss terms
        for left, right in self._merges:
            gradients[self._places[left]] += gradients[self._places[right]]


class ReducedSum(HostSum):
    """The sum by an all-reduce: with many hosts fewer bytes; its last bits depend on their number. R is 1."""

    def _put_terms(self, parts: Tensor) -> None:
        columns = self._columns
        if self._exchange is not None:  # the others' are added
            own = self._hosts[self._host]
            columns[: own.start] = columns[own.stop :] = 0.0
        columns[self._group.shards.start : self._group.shards.stop] = parts

    def _take_terms(self, everyones: Tensor) -> None:
        everyones.copy_(self._columns)

    @property
    def _columns(self) -> Tensor:
        """`[S, 5]` float32, the loss terms of all shards."""
        count = self._num_shards * len(TERMS)
        return self._nodes[0, self._size : self._size + count].view(-1, len(TERMS))

    def _talk(self, exchange: Exchange) -> None:
        exchange.add_up(self._nodes[0])


class LocalSum(HostSum):
    """The gradient of this host's shards alone; parameters and the optimiser's statistics are averaged now and then.

    Local SGD (Stich 2019, arXiv 1805.09767). A gradient is weighted for the mean over all hosts' rows, so a host takes
    H times its own. R is the number of vectors that are averaged.
    """

    def __init__(
        self,
        nodes: Tensor,
        grads: Tensor,
        hosts: Sequence[range],
        group: HostGroup,
        exchange: Exchange | None,
        every: int,
    ) -> None:
        """See `HostSum`; the vectors are averaged after `every` updates, and before a pause."""
        super().__init__(nodes, grads, hosts, group, exchange)
        self._every, self._since = every, 0
        self._vectors: Sequence[Tensor] = ()
        self._is_shared = False
        group.before_pause = self._settle

    def _put_terms(self, parts: Tensor) -> None:
        first = self._group.shards.start - self.first_shard
        _terms_of(self._nodes[0], self._size, len(parts), first).copy_(parts)

    def _take_terms(self, everyones: Tensor) -> None:
        own, terms = self._hosts[self._host], _terms_of(self._nodes[0], self._size, len(self._hosts[self._host]), 0)
        everyones[own.start : own.stop] = len(self._hosts) * terms

    def _sum_own(self, begin: int, end: int) -> list[Op]:
        return [*super()._sum_own(begin, end), partial(self._nodes[0, begin:end].mul_, float(len(self._hosts)))]

    def _talk(self, exchange: Exchange) -> None:
        """Do nothing: this host goes on by itself."""

    def after_update(self, vectors: Sequence[Tensor], is_shared: bool) -> list[Op]:
        """See `HostSum`."""
        self._vectors, self._is_shared = vectors, is_shared
        return [self._count]

    def _count(self) -> None:
        self._since += 1
        if self._since == self._every:
            self._average()

    def _settle(self) -> None:
        """Average what has changed since the last time: all hosts save and evaluate one policy."""
        if self._since:
            self._average()

    def _average(self) -> None:
        self._since = 0
        rows = self._nodes[: len(self._vectors), : self._size]
        self._group.wait()
        if self._exchange is not None:
            for row, vector in zip(rows, self._vectors, strict=True):
                row.copy_(vector)
            self._exchange.add_up(self._nodes)
            rows.div_(len(self._hosts))
        self._group.wait()
        if self._exchange is not None or not self._is_shared:
            for row, vector in zip(rows, self._vectors, strict=True):
                vector.copy_(row)
        self._group.wait()


def build_host_sum(
    kind: ExchangeName,
    sync_every: int,
    nodes: Tensor,
    grads: Tensor,
    hosts: Sequence[range],
    group: HostGroup,
    exchange: Exchange | None,
) -> HostSum:
    """Build the sum of a kind of exchange, or that of local steps if parameters are averaged after several updates."""
    if sync_every > 1:
        return LocalSum(nodes, grads, hosts, group, exchange, sync_every)
    return (ExactSum if kind == "exact" else ReducedSum)(nodes, grads, hosts, group, exchange)


def node_shape(
    kind: ExchangeName, sync_every: int, size: int, num_slots: int, hosts: Sequence[range]
) -> tuple[int, int]:
    """Return R and the columns of `nodes` before padding, see `HostSum`.

    Args:
        kind: the kind of exchange.
        sync_every: updates between averages.
        size: P.
        num_slots: the vectors of the optimiser.
        hosts: the shards of each host.
    """
    num_shards, most = hosts[-1].stop, max(map(len, hosts))
    if sync_every > 1:
        return 1 + num_slots, size + _COLUMNS * most
    if kind == "allreduce":
        return 1, size + len(TERMS) * num_shards
    return len(hosts) * max(len(subtrees(shards, num_shards)) for shards in hosts), size + _COLUMNS * most


def _terms_of(node: Tensor, size: int, count: int, first: int) -> Tensor:
    """Return the float64 loss terms `[count, 5]` behind the gradient of a vector, from shard `first` on."""
    begin = size + first * _COLUMNS
    return node[begin : begin + count * _COLUMNS].view(torch.float64).view(-1, len(TERMS))
