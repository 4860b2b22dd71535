"""Slices a rollout into minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from fastac.kernels import Op, as_bytes, gather_rows, join_calls
from fastac.rollout.buffer import Rollout


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for one update: `[M, ...]` flat, or `[T, n, ...]` as sequences.

    Attributes:
        obs: raw observations.
        action: unclipped.
        log_prob: under the policy that collected the rollout.
        advantage: not normalised.
        return_: the critic's target.
        valid: rows that count.
        start: rows at which an episode begins.
        state: `[n, S]`, the recurrent state of sequences before row 0.
        value: the critic's estimates while acting; None if the loss does not read them.
    """

    obs: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    return_: Tensor
    valid: Tensor
    start: Tensor
    state: Tensor
    value: Tensor | None = None

    @property
    def by_row(self) -> list[Tensor]:
        """What has a row for each step: all but `state`."""
        rows = self.obs, self.action, self.log_prob, self.advantage, self.return_, self.valid, self.start
        return [*rows] if self.value is None else [*rows, self.value]

    @property
    def tensors(self) -> list[Tensor]:
        """All that it has."""
        return [*self.by_row, self.state]

    def to(self, device: torch.device, copy: bool = False) -> Batch:
        """Copy to a device; return the batch itself if it is already there, unless a `copy` is wanted."""
        if self.obs.device == device and not copy:
            return self
        *rows, state = (part.to(device, non_blocking=True, copy=copy) for part in self.tensors)
        return _batch(rows, state)

    def flat(self) -> Batch:
        """View sequences `[T, n, ...]` as rows `[T * n, ...]`; a flat batch is returned as it is."""
        if self.valid.dim() == 1:
            return self
        return _batch([part.flatten(0, 1) for part in self.by_row], self.state)

    def rows(self, begin: int, end: int) -> Batch:
        """View rows `begin` to `end` of a flat batch."""
        return _batch([part[begin:end] for part in self.by_row], self.state)


# The advantages of a minibatch, `[M]`, and which of its rows count, `[M]`.
Preview: TypeAlias = tuple[Tensor, Tensor]


class Minibatches(Protocol):
    """Yields the minibatches of one epoch over a rollout."""

    def nbytes(self, rollout: Rollout) -> int:
        """Return the memory in bytes that minibatches need besides the rollout."""

    def begin_epoch(self, rollout: Rollout) -> list[Preview]:
        """Draw an order; return what each minibatch will have, in the same memory every time.

        So workers exchange the moments of all minibatches at once. A single minibatch is the rollout: nothing returns.
        """

    def batches(self) -> Iterator[Batch]:
        """Yield every row once, in the order drawn; the next batch may overwrite the previous one.

        Batches of one rollout that have the same size are one object, filled anew.
        """

    def split(self, rollout: Rollout) -> Iterator[Batch]:
        """Begin an epoch and yield its batches."""
        self.begin_epoch(rollout)
        yield from self.batches()


class FlatMinibatches(Minibatches):
    """Rows in random order, for models without recurrence; a single minibatch is the rollout itself, without a copy."""

    def __init__(self, num_minibatches: int, generator: Generator, keeps_value: bool = False) -> None:
        """Draw a new order from `generator` for every epoch; batches have the values only if the loss reads them."""
        self._num, self._generator, self._keeps_value = num_minibatches, generator, keeps_value
        # Views of the rollout and of one minibatch, kept because both use the same memory every time.
        self._rollout: Rollout | None = None
        self._part: Batch
        self._index: Tensor  # [B / num_minibatches], the rows of a minibatch
        self._gather: list[Op]  # copies them
        self._order: _Order

    def nbytes(self, rollout: Rollout) -> int:
        """See `Minibatches`."""
        rows = rollout.valid.numel()
        order = 8 * rows // self._num + _Order.nbytes(rows) if self._num > 1 else 0
        return _share(rollout, self._num, self._keeps_value) + order

    def begin_epoch(self, rollout: Rollout) -> list[Preview]:
        """See `Minibatches`."""
        if self._rollout is not rollout:
            self._view(rollout)
        if self._num == 1:
            return []
        torch.randperm(rollout.valid.numel(), generator=self._generator, out=self._order.rows)
        return self._order.preview()

    def batches(self) -> Iterator[Batch]:
        """Yield minibatches `[B / num_minibatches, ...]`."""
        rollout = self._rollout
        assert rollout is not None, "an epoch has begun"
        if self._num == 1:
            rollout.observations.whole(self._part.obs)
            yield self._part
            return
        for index in self._order.rows.view(self._num, -1):
            self._index.copy_(index)
            for op in self._gather:
                op()
            yield self._part

    def _view(self, rollout: Rollout) -> None:
        rows, observations = _rows(rollout, self._keeps_value), rollout.observations
        flat = [part.flatten(0, 1) for part in rows]
        num = len(flat[0]) // self._num
        assert num * self._num == len(flat[0]), "minibatches of equal size, as the configuration promises"
        self._rollout = rollout
        if self._num == 1:
            self._part = _batch([observations.batch(), *flat], rollout.state)
            return
        self._order = _Order(rollout, [num] * self._num)
        self._index = torch.empty(num, dtype=torch.int64)
        self._part = _batch([observations.empty(num), *(part[:num].clone() for part in flat)], rollout.state)
        self._gather = _prepare_gather(rollout, self._index, self._part)


class SequenceMinibatches(Minibatches):
    """Whole sequences of some envs, for recurrent models; a single minibatch is the rollout itself, without a copy."""

    def __init__(self, num_minibatches: int, generator: Generator, keeps_value: bool = False) -> None:
        """Draw a new grouping of the envs from `generator` for every epoch; see `FlatMinibatches`."""
        self._num, self._generator, self._keeps_value = num_minibatches, generator, keeps_value
        # Views of the rollout and of one minibatch, kept because both use the same memory every time.
        self._rollout: Rollout | None = None
        self._whole: Batch
        self._rows: Tensor  # [T, N], number of each row of the rollout
        # By number of sequences n: the minibatch, `[T, n]` with the numbers of its rows, and what copies them.
        self._parts: dict[int, tuple[Batch, Tensor, list[Op]]]
        self._order: _Order
        self._envs: Tensor  # [N], in the order drawn

    def nbytes(self, rollout: Rollout) -> int:
        """See `Minibatches`."""
        if self._num == 1:
            return _share(rollout, 1, self._keeps_value)
        numbers = 8 * rollout.num_steps
        sequence = _share(rollout, rollout.num_envs, self._keeps_value) + 4 * rollout.state.shape[1] + numbers
        order = _Order.nbytes(rollout.valid.numel()) + 8 * rollout.num_envs
        return self._most(rollout) * sequence + rollout.num_envs * numbers + order

    def begin_epoch(self, rollout: Rollout) -> list[Preview]:
        """See `Minibatches`."""
        if self._rollout is not rollout:
            self._view(rollout)
        if self._num == 1:
            return []
        torch.randperm(rollout.num_envs, generator=self._generator, out=self._envs)
        for index, rows in zip(self._envs.chunk(self._num), self._order.parts, strict=True):
            torch.index_select(self._rows, 1, index, out=rows.view(rollout.num_steps, len(index)))
        return self._order.preview()

    def batches(self) -> Iterator[Batch]:
        """Yield minibatches `[T, N / num_minibatches, ...]`, of unequal sizes if that leaves a rest."""
        rollout = self._rollout
        assert rollout is not None, "an epoch has begun"
        if self._num == 1:
            rollout.observations.whole(self._whole.obs.flatten(0, 1))
            yield self._whole
            return
        for index, numbers in zip(self._envs.chunk(self._num), self._order.parts, strict=True):
            part, rows, gather = self._parts[len(index)]
            rows.view(-1).copy_(numbers)
            for op in gather:
                op()
            torch.index_select(rollout.state, 0, index, out=part.state)
            yield part

    def _most(self, rollout: Rollout) -> int:
        return -(-rollout.num_envs // self._num)

    def _view(self, rollout: Rollout) -> None:
        leading, obs = (rollout.num_steps, rollout.num_envs), rollout.observations
        rows = _rows(rollout, self._keeps_value)
        self._rollout = rollout
        if self._num == 1:
            self._whole = _batch([obs.batch().unflatten(0, leading), *rows], rollout.state)
            return
        self._rows = torch.arange(rollout.valid.numel()).view(leading)
        sizes = [len(index) for index in torch.arange(leading[1]).chunk(self._num)]
        self._order = _Order(rollout, [leading[0] * size for size in sizes])
        self._envs = torch.empty(leading[1], dtype=torch.int64)
        most = leading[0] * self._most(rollout)
        numbers = torch.empty(most, dtype=torch.int64)
        copies = [obs.empty(most), *(torch.empty(most, *part.shape[2:], dtype=part.dtype) for part in rows)]
        state = torch.empty(self._most(rollout), rollout.state.shape[1])
        self._parts = {}
        for size in set(sizes):
            views = [copy[: leading[0] * size].unflatten(0, (leading[0], size)) for copy in (numbers, *copies)]
            part = _batch(views[1:], state[:size])
            self._parts[size] = part, views[0], _prepare_gather(rollout, views[0].flatten(), part.flat())


class _Order:
    """The order of an epoch's rows, and its preview.

    Attributes:
        rows: `[B]` int64, numbers of the rollout's rows, minibatch by minibatch.
        parts: views of `rows`, one of each minibatch.
    """

    def __init__(self, rollout: Rollout, sizes: Sequence[int]) -> None:
        """Allocate for minibatches of these numbers of rows."""
        self.rows = torch.zeros(rollout.valid.numel(), dtype=torch.int64)
        self.parts = self.rows.split(list(sizes))
        advantage, valid = torch.empty(len(self.rows)), torch.empty(len(self.rows), dtype=torch.bool)
        copies = (rollout.advantage, advantage), (rollout.valid, valid)
        self._look = join_calls(
            [gather_rows.prepare(as_bytes(of.flatten(0, 1)), self.rows, as_bytes(to)) for of, to in copies]
        )
        self._previews = list(zip(advantage.split(list(sizes)), valid.split(list(sizes)), strict=True))

    @staticmethod
    def nbytes(rows: int) -> int:
        """Return the memory for B = `rows`."""
        return (8 + 4 + 1) * rows

    def preview(self) -> list[Preview]:
        """Return advantages and valid rows in the present order."""
        for op in self._look:
            op()
        return self._previews


def _rows(rollout: Rollout, keeps_value: bool) -> list[Tensor]:
    """List the rows of a batch without observations, `[T, N, ...]` each, in the order of `Batch.by_row`."""
    rows = [
        rollout.action,
        rollout.log_prob,
        rollout.advantage,
        rollout.return_,
        rollout.valid,
        rollout.start[: rollout.num_steps],
    ]
    return [*rows, rollout.value[: rollout.num_steps]] if keeps_value else rows


def _prepare_gather(rollout: Rollout, index: Tensor, part: Batch) -> list[Op]:
    """Return the calls that copy the rows at `index` `[M]` to a flat minibatch `[M, ...]`."""
    ops = [rollout.observations.prepare_take(index, part.obs)]
    for rows, copies in zip(_rows(rollout, part.value is not None), part.by_row[1:], strict=True):
        ops.append(gather_rows.prepare(as_bytes(rows.flatten(0, 1)), index, as_bytes(copies)))
    return join_calls(ops)


def _share(rollout: Rollout, num_minibatches: int, keeps_value: bool) -> int:
    """Return the memory in bytes of a copied minibatch; for a single minibatch, only the memory of built stacks."""
    observations = rollout.observations.batch_nbytes
    if num_minibatches == 1:
        return observations if rollout.observations.size > 1 else 0
    return (observations + sum(part.nbytes for part in _rows(rollout, keeps_value))) // num_minibatches


def _batch(parts: list[Tensor], state: Tensor) -> Batch:
    obs, action, log_prob, advantage, return_, valid, start, *value = parts
    return Batch(obs, action, log_prob, advantage, return_, valid, start, state, *value)
