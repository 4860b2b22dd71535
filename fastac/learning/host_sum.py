"""Adds up the gradients of all shards if they are on several hosts.

Each host adds up its own, its workers a part of the vector each. One worker of each host exchanges the sums, together
with the loss terms, as one vector per host. Then every worker adds up what has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastac.contract import Group
from fastac.kernels import Op, num_blocks, sum_gradients
from fastac.learning.objectives import TERMS
from fastac.learning.shard_tree import merges, subtrees

_COLUMNS = 2 * len(TERMS)  # float32 columns that hold the float64 loss terms of a shard


class Exchange(Protocol):
    """What a host's worker that talks to others does with the vectors of all hosts."""

    def gather(self, parts: list[Tensor], own: Tensor) -> None:
        """Fill `parts`, one of each host, from the `own` part of each."""

    def add_up(self, vector: Tensor) -> None:
        """Add up a vector over all hosts, in place."""


def num_rows(hosts: Sequence[range]) -> int:
    """Return how many vectors each host sends: the most subtrees that one has."""
    return max(len(subtrees(shards, hosts[-1].stop)) for shards in hosts)


def num_columns(hosts: Sequence[range]) -> int:
    """Return how many columns a vector has besides the gradient, before padding."""
    return _COLUMNS * max(map(len, hosts))


class HostSum:
    """The exact sum: the same bits as if one host had all shards.

    A host sends the sums of its subtrees, see `fastac.learning.shard_tree`.

    Attributes:
        first_shard: of this host.
        num_columns: Q, the columns of a vector that is exchanged.
    """

    def __init__(
        self, nodes: Tensor, grads: Tensor, hosts: Sequence[range], group: Group, exchange: Exchange | None
    ) -> None:
        """Take the memory.

        Args:
            nodes: `[H * R, Q]` in memory that the host's workers share: R = `num_rows` vectors of each host, each the P
                elements of a gradient and, in the first of a host, the loss terms of its shards.
            grads: `[L, P]`, likewise: the gradients of this host's shards.
            hosts: the shards of each host.
            group: this worker's shards.
            exchange: the other hosts, if this worker is the one that talks to them.
        """
        self._nodes, self._grads, self._hosts, self._group, self._exchange = nodes, grads, hosts, group, exchange
        self._num_shards, self._per_host = hosts[-1].stop, len(nodes) // len(hosts)
        own = next(host for host, shards in enumerate(hosts) if group.shards.start in shards)
        self._own = own * self._per_host  # row of its first node
        self.first_shard, self.num_columns = hosts[own].start, nodes.shape[1]
        # The nodes of all hosts, in order, and where they are.
        self._ranges = [subtrees(shards, self._num_shards) for shards in hosts]
        self._places = [host * self._per_host + k for host, found in enumerate(self._ranges) for k in range(len(found))]
        size = len(self._ranges[0][0])
        every = [node for found in self._ranges for node in found]
        # If each host has one subtree, all of the same level, the tree above them is that of as many shards.
        is_level = self._per_host == 1 and all(node.start == k * size for k, node in enumerate(every))
        self._merges = [] if is_level else merges(every, self._num_shards)
        self._num_left = len(every) if is_level else 1

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
        own_terms = self._terms(self._own, range(len(parts)), self._group.shards.start - self.first_shard)

        def put_terms() -> None:
            own_terms.copy_(parts)

        def take_terms() -> None:
            for host, shards in enumerate(self._hosts):
                everyones[shards.start : shards.stop] = self._terms(host * self._per_host, shards, 0)

        calls: list[Op] = [self._group.wait, put_terms, *self._sum_own(*own_part)]
        calls.append(self._group.wait)
        if self._exchange is not None:
            calls.append(self._exchange_nodes)
        left = self._nodes[: self._num_left]
        return [*calls, self._group.wait, take_terms, sum_gradients.prepare(left, *part, total, squares)], everyones

    def _sum_own(self, begin: int, end: int) -> list[Op]:
        """Return the calls that add up this worker's part of the host's subtrees."""
        size = self._grads.shape[1]
        unused = torch.zeros(num_blocks(size), dtype=torch.float64, device=self._grads.device)
        calls: list[Op] = []
        for k, node in enumerate(self._ranges[self._own // self._per_host]):
            rows = self._grads[node.start - self.first_shard : node.stop - self.first_shard]
            target = self._nodes[self._own + k]
            if rows.data_ptr() != target.data_ptr():  # a host's only shard computes its gradient there
                calls.append(sum_gradients.prepare(rows, begin, end, target[:size], unused))
        return calls

    def _exchange_nodes(self) -> None:
        assert self._exchange is not None
        parts = list(self._nodes.view(len(self._hosts), -1))
        self._exchange.gather(parts, parts[self._own // self._per_host])
        gradients = self._nodes[:, : self._grads.shape[1]]  # without the loss terms
        for left, right in self._merges:
            gradients[self._places[left]] += gradients[self._places[right]]

    def _terms(self, row: int, shards: range, first: int) -> Tensor:
        """Return the view of the loss terms of a host's shards, `[l, 5]`, the first being its `first`."""
        begin = self._grads.shape[1] + first * _COLUMNS
        columns = self._nodes[row, begin : begin + len(shards) * _COLUMNS]
        return columns.view(torch.float64).view(-1, len(TERMS))
