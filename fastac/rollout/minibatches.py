"""Slices a rollout into minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Generator, Tensor

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
    """

    obs: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    return_: Tensor
    valid: Tensor
    start: Tensor
    state: Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy to a device; return the batch itself if it is already there."""
        if self.obs.device == device:
            return self
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def rows(self, begin: int, end: int) -> Batch:
        """View rows `begin` to `end` of a flat batch."""
        return _batch([getattr(self, f.name)[begin:end] for f in fields(self)[:-1]], self.state)


class Minibatches(Protocol):
    """Yields the minibatches of one epoch over a rollout."""

    def nbytes(self, rollout: Rollout) -> int:
        """Return the memory in bytes that minibatches need besides the rollout."""

    def split(self, rollout: Rollout) -> Iterator[Batch]:
        """Yield every row once; the next batch may overwrite the previous one."""


class FlatMinibatches:
    """Rows in random order, for models without recurrence; a single minibatch is the rollout itself, without a copy."""

    def __init__(self, num_minibatches: int, generator: Generator) -> None:
        """Draw a new order from `generator` for every epoch."""
        self._num, self._generator = num_minibatches, generator
        # Views of the rollout and of one minibatch, kept because both use the same memory every time.
        self._rollout: Rollout | None = None
        self._whole: Batch
        self._part: Batch

    def nbytes(self, rollout: Rollout) -> int:
        """See `Minibatches`."""
        return _share(rollout, self._num)

    def split(self, rollout: Rollout) -> Iterator[Batch]:
        """Yield minibatches `[B / num_minibatches, ...]`."""
        if self._rollout is not rollout:
            self._view(rollout)
        if self._num == 1:
            rollout.observations.whole(self._whole.obs)
            yield self._whole
            return
        order = torch.randperm(len(self._whole.valid), generator=self._generator)
        for index in order.view(self._num, -1):
            rollout.observations.take(index, self._part.obs)
            for f in fields(self._part)[1:-1]:  # all but obs and state
                torch.index_select(getattr(self._whole, f.name), 0, index, out=getattr(self._part, f.name))
            yield self._part

    def _view(self, rollout: Rollout) -> None:
        flat, observations = [part.flatten(0, 1) for part in _rows(rollout)], rollout.observations
        num = len(flat[0]) // self._num
        assert num * self._num == len(flat[0]), "minibatches of equal size, as the configuration promises"
        self._rollout = rollout
        if self._num == 1:
            self._whole = self._part = _batch([observations.batch(), *flat], rollout.state)
            return
        self._whole = _batch([observations.empty(0), *flat], rollout.state)  # observations are copied by index instead
        self._part = _batch([observations.empty(num), *(part[:num].clone() for part in flat)], rollout.state)


class SequenceMinibatches:
    """Whole sequences of some envs, for recurrent models; a single minibatch is the rollout itself."""

    def __init__(self, num_minibatches: int, generator: Generator) -> None:
        """Draw a new grouping of the envs from `generator` for every epoch."""
        self._num, self._generator = num_minibatches, generator

    def nbytes(self, rollout: Rollout) -> int:
        """See `Minibatches`."""
        return _share(rollout, self._num)

    def split(self, rollout: Rollout) -> Iterator[Batch]:
        """Yield minibatches `[T, N / num_minibatches, ...]`."""
        rows, obs = _rows(rollout), rollout.observations
        leading = rollout.num_steps, rollout.num_envs
        if self._num == 1:
            whole = obs.batch()
            obs.whole(whole)
            yield _batch([whole.unflatten(0, leading), *rows], rollout.state)
            return
        order = torch.randperm(rollout.num_envs, generator=self._generator)
        flat = torch.arange(rollout.valid.numel()).view(leading)  # [T, N]
        for index in order.chunk(self._num):
            part = obs.empty(len(flat) * len(index))
            obs.take(flat[:, index].flatten(), part)
            rest = [row[:, index] for row in rows]
            yield _batch([part.unflatten(0, (len(flat), len(index))), *rest], rollout.state[index])


def _rows(rollout: Rollout) -> list[Tensor]:
    """List the fields of a batch without observations, `[T, N, ...]` each, in the batch's order."""
    return [
        rollout.action,
        rollout.log_prob,
        rollout.advantage,
        rollout.return_,
        rollout.valid,
        rollout.start[: rollout.num_steps],
    ]


def _share(rollout: Rollout, num_minibatches: int) -> int:
    """Return the memory in bytes of a copied minibatch; for a single minibatch, only the memory of built stacks."""
    observations = rollout.observations.batch_nbytes
    if num_minibatches == 1:
        return observations if rollout.observations.size > 1 else 0
    return (observations + sum(part.nbytes for part in _rows(rollout))) // num_minibatches


def _batch(parts: list[Tensor], state: Tensor) -> Batch:
    obs, action, log_prob, advantage, return_, valid, start = parts
    return Batch(obs, action, log_prob, advantage, return_, valid, start, state)
