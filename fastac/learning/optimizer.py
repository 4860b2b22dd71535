"""Optimizers: clip the gradient and update the parameters.

All parameters of a model become views of one flat tensor, and so do their gradients. Clipping is then one norm and
an update is one pass over a few vectors, whatever the number of layers. Each parameter begins at a cache line (see
`fastac.memory`); the gaps hold zeros, which add nothing to the norm and stay zero.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from fastac import memory
from fastac.contract import Group, StateTree, WorkerFailure, read_count, read_tensor
from fastac.kernels import (
    SQUARES_BLOCK,
    Op,
    clip_gradient,
    copy_row,
    join_calls,
    num_blocks,
    sum_gradients,
    sum_squares,
)
from fastac.learning.host_sum import HostSum
from fastac.learning.spans import find_spans, prepare_update, room_of
from fastac.learning.update_rules import Step, UpdateRule


class Optimizer(Protocol):
    """Updates the parameters with the sum of all shards' gradients."""

    def prepare_keep(self, shard: int) -> list[Op]:
        """Return the calls that keep the current gradient as that of a shard; `shard` counts this process's from 0."""

    def prepare(self, parts: Tensor, terms: Tensor, norm: Tensor, learning_rate: Tensor) -> list[Op]:
        """Return the calls of a step, after those that keep each shard's gradient: sum, clip and update.

        If a loss term or the norm is NaN or infinite, a step updates nothing.

        Args:
            parts: `[L, 5]` float64, the loss terms of this process's shards, weighted for the global mean as their
                gradients are.
            terms: `[5]` float64, written: those of all shards, added up.
            norm: `[1]` float64, written: the norm of the gradient before clipping.
            learning_rate: `[1]` float64, the step size, read by every step; `[2]` if the critic has its own.
        """

    def get_state(self) -> StateTree:
        """Return the optimiser's slots and step count."""

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""


@dataclass(frozen=True, slots=True)
class FlatParameters:
    """The parameters of a model and the optimizer's statistics of them.

    Attributes:
        param: `[P]`, see `flatten`.
        slots: `[P]` each, by name.
    """

    param: Tensor
    slots: Mapping[str, Tensor]

    @classmethod
    def allocate(cls, param: Tensor, rule: UpdateRule) -> FlatParameters:
        """Return the parameters with new slots of a rule."""
        return cls(param, {name: torch.full_like(param, value) for name, value in rule.slots.items()})

    def get_state(self, steps: int) -> StateTree:
        """Return the slots and their step count; the parameters belong to the model's state."""
        return {**{name: slot.clone() for name, slot in self.slots.items()}, "steps": steps}

    def set_state(self, state: StateTree) -> int:
        """Restore the slots bit for bit; return their step count.

        Raises:
            ValueError: the slots belong to another network or were saved in another layout.
        """
        for name, slot in self.slots.items():
            slot.copy_(read_tensor(state, name, slot))
        return read_count(state, "steps")


class LocalOptimizer:
    """Optimizer of a model that only this process trains."""

    def __init__(
        self,
        model: nn.Module,
        rule: UpdateRule,
        max_grad_norm: float | None,
        num_shards: int = 1,
        critic: Collection[nn.Parameter] = (),
    ) -> None:
        """Make `model`'s parameters views of one vector, updated by `rule`.

        Args:
            model: already on its device; its parameters keep their names and shapes.
            rule: the update rule.
            max_grad_norm: clip the global gradient norm to this; None does not clip.
            num_shards: S; the gradient of a single shard is used where it is.
            critic: the parameters that have a step size of their own.

        Raises:
            ValueError: a parameter is not float32.
        """
        param, self._grad = flatten(model)
        self._vectors, self._spans = FlatParameters.allocate(param, rule), find_spans(model, critic)
        self._rule, self._max_norm = rule, max_grad_norm
        self._kept = memory.zeros((num_shards if num_shards > 1 else 0, len(param)), device=param.device)
        self._count = torch.zeros(1, dtype=torch.float64)

    def prepare_keep(self, shard: int) -> list[Op]:
        """See `Optimizer`."""
        return [copy_row.prepare(self._grad, self._kept[shard])] if len(self._kept) else []

    def prepare(self, parts: Tensor, terms: Tensor, norm: Tensor, learning_rate: Tensor) -> list[Op]:
        """See `Optimizer`."""
        squares, step = squares_of(self._grad), Step.allocate(learning_rate, self._count)
        return [
            sum_gradients.prepare(self._kept, 0, len(self._grad), self._grad, squares)
            if len(self._kept)
            else sum_squares.prepare(self._grad, squares),
            prepare_clip(squares, parts, terms, self._max_norm, norm, step),
            *prepare_update(self._rule, self._spans, 0, self._vectors.param, self._grad, self._vectors.slots, step),
        ]

    def get_state(self) -> StateTree:
        """Return the slots and the step count; the parameters belong to the model's state."""
        return self._vectors.get_state(int(self._count))

    def set_state(self, state: StateTree) -> None:
        """Restore the slots and the step count bit for bit."""
        self._count.fill_(self._vectors.set_state(state))


@dataclass(frozen=True, slots=True)
class SharedVectors:
    """What workers share whose parameters are many.

    Attributes:
        parameters: the parameters and the optimizer's statistics.
        squares: the sums of squares of the gradient's blocks; each worker writes those of its part.
    """

    parameters: FlatParameters
    squares: Tensor


class SharedOptimizer:
    """Optimizer of a model that workers in step train together. All shards' gradients are in shared memory.

    Few parameters are kept and updated by every worker, so one exchange is enough. Many are in shared memory too, and
    each worker sums and updates one part of them: at a million parameters a step is limited by memory access, and each
    element is updated once, not once per worker. That takes two waits more: for the squares of the norm, and for the
    end. Both give the same bits. With several hosts, the workers of each do this, see `HostSum`.

    Gradients are summed in a fixed tree over the shards, so results depend neither on
    timing nor on who holds which shard. A worker killed inside such a step leaves a part of the parameters one step
    ahead of the rest; such a state is never saved.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: UpdateRule,
        max_grad_norm: float | None,
        group: Group,
        grads: Tensor,
        shared: SharedVectors | None,
        host_sum: HostSum | None = None,
        critic: Collection[nn.Parameter] = (),
    ) -> None:
        """Make `model`'s parameters views of one vector, and its gradients views of another.

        Args:
            model: with the same values in every worker; its parameters keep their names and shapes.
            rule: the update rule.
            max_grad_norm: clip the global gradient norm to this; None does not clip.
            group: the shards whose gradients are summed; each gradient is already weighted for the global mean.
            grads: `[2, S, P]` in shared memory; `[1, S, P]` if the parameters are shared too. Of several hosts, this
                one's shards, `[1, L, P]`.
            shared: parameters that all workers share; None: each keeps its own.
            host_sum: adds up the gradients of several hosts.
            critic: the parameters that have a step size of their own.

        Raises:
            ValueError: a parameter is not float32.
        """
        size, is_split = grads.shape[-1], shared is not None
        first = group.shards.start - (0 if host_sum is None else host_sum.first_shard)
        own = grads[:, first : first + len(group.shards)]
        # The gradient of a worker's only shard is computed where the others read it, if there is one place for it.
        is_in_place = len(grads) == 1 and len(group.shards) == 1
        param, self._grad = flatten(
            model, None if shared is None else shared.parameters.param, own[0, 0] if is_in_place else None
        )
        self._vectors = FlatParameters.allocate(param, rule) if shared is None else shared.parameters
        self._range = part_of(size, group.rank, group.size) if is_split else (0, size)
        begin, end = self._range
        self._own = FlatParameters(
            self._vectors.param[begin:end], {name: slot[begin:end] for name, slot in self._vectors.slots.items()}
        )
        self._spans = find_spans(model, critic)
        self._host_sum, self._part = host_sum, part_of(size, group.rank, group.size)
        self._sum = memory.empty((size if host_sum is None else host_sum.num_columns,), device=param.device)
        self._squares = squares_of(param) if shared is None else shared.squares
        self._rule, self._max_norm, self._group, self._is_split = rule, max_grad_norm, group, is_split
        self._count = torch.zeros(1, dtype=torch.float64)
        self._turn = 0
        self._is_torn = False
        # By turn: the calls that keep a shard's gradient, and the one that adds up all of them.
        self._keeps = [[] if is_in_place else [copy_row.prepare(self._grad, kept) for kept in each] for each in own]
        self._add_up = [
            sum_gradients.prepare(each, begin, end, self._sum, self._squares) for each in grads if host_sum is None
        ]

    def prepare_keep(self, shard: int) -> list[Op]:
        """See `Optimizer`.

        Workers that keep their parameters put their gradients into two places in turn: another one may still read what
        this one wrote in the step before. It has read it when it takes part in the exchange of this step.
        """
        if not self._keeps[0]:
            return []
        return [self._keeps[0][shard]] if len(self._keeps) == 1 else [partial(self._keep, shard)]

    def _keep(self, shard: int) -> None:
        self._keeps[self._turn][shard]()

    def prepare(self, parts: Tensor, terms: Tensor, norm: Tensor, learning_rate: Tensor) -> list[Op]:
        """See `Optimizer`."""
        (begin, end), step = self._range, Step.allocate(learning_rate, self._count)
        if self._host_sum is None:
            gather, everyones = self._group.prepare_gather(parts)  # [S, 5]; then all gradients are complete
            combine: list[Op] = [*gather, self._combine]
        else:
            combine, everyones = self._host_sum.prepare(parts, self._part, self._range, self._sum, self._squares)
        clip = prepare_clip(self._squares, everyones, terms, self._max_norm, norm, step)
        update = prepare_update(
            self._rule, self._spans, begin, self._own.param, self._sum[begin:end], self._own.slots, step
        )
        if not self._is_split:
            return [*combine, clip, *update, *self._after_update()]
        return [
            *combine,
            self._group.wait,
            clip,
            partial(self._begin_update, step.grad_scale),
            *update,
            self._end_update,
            *self._after_update(),
        ]

    def _after_update(self) -> list[Op]:
        if self._host_sum is None:
            return []
        vectors = [self._vectors.param, *self._vectors.slots.values()]
        return self._host_sum.after_update(vectors, is_shared=self._is_split)

    def _combine(self) -> None:
        """Add up the gradients of all shards, or this worker's part of them."""
        turn = self._turn
        self._turn = (turn + 1) % len(self._add_up)
        self._add_up[turn]()

    def _begin_update(self, grad_scale: Tensor) -> None:
        self._is_torn = not math.isnan(grad_scale)

    def _end_update(self) -> None:
        """Wait until all parts are updated."""
        self._group.wait()
        self._is_torn = False

    def get_state(self) -> StateTree:
        """Return the slots and the step count; the parameters belong to the model's state.

        Raises:
            WorkerFailure: a worker was lost inside a step, so a part of the parameters is one step ahead.
        """
        if self._is_torn:
            raise WorkerFailure("a worker was lost within a step, of which only a part was taken")
        return self._vectors.get_state(int(self._count))

    def set_state(self, state: StateTree) -> None:
        """Restore the slots and the step count bit for bit; every worker restores the same state."""
        self._count.fill_(self._vectors.set_state(state))


class UpdateCounter(Protocol):
    """Counts the updates of shared parameters by all workers."""

    def total(self) -> int:
        """Return the number of updates by all workers so far."""

    def add(self, staleness: int) -> None:
        """Count an update by this worker; others made `staleness` updates since it copied the parameters."""


class HogwildOptimizer:
    """Optimizer of parameters that workers update without waiting for each other.

    Hogwild (Niu et al. 2011, arXiv 1106.5730), as used by A3C (Mnih et al. 2016, arXiv 1602.01783). The gradient is
    of this worker's own copy of the parameters and stays in this process. The step reads and writes parameters and
    statistics in shared memory while other workers do the same. If two writes collide, one of them may be lost for an
    element; elements are never torn, since they are 4 bytes. After its step the worker copies the parameters again.
    With the lock, staleness is exact. Without it, a step in progress during this step or copy may count or not.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: UpdateRule,
        max_grad_norm: float | None,
        shared: FlatParameters,
        counter: UpdateCounter,
        lock: AbstractContextManager[object],
        critic: Collection[nn.Parameter] = (),
    ) -> None:
        """Make `model` this worker's copy of the shared parameters.

        Args:
            model: on the CPU; its parameters become views of one vector.
            rule: the update rule.
            max_grad_norm: clip the norm of this worker's gradient to this; None does not clip.
            shared: shared by all workers, of `flat_size(model)`.
            counter: counts the updates of all workers.
            lock: held from a step until the copy after it is done; a null context for no lock.
            critic: the parameters that have a step size of their own.

        Raises:
            ValueError: a parameter is not float32.
        """
        self._param, self._grad = flatten(model)
        assert self._param.shape == shared.param.shape, "the shared vector is of another model"
        self._rule, self._max_norm, self._spans = rule, max_grad_norm, find_spans(model, critic)
        self._shared, self._counter, self._lock = shared, counter, lock
        self._number = torch.zeros(1, dtype=torch.float64)  # of a step among those of all workers
        self.copy()

    def copy(self) -> None:
        """Copy the shared parameters."""
        with self._lock:
            self._copy()

    def _copy(self) -> None:
        self._copied_at = self._counter.total()
        self._param.copy_(self._shared.param)

    def prepare_keep(self, shard: int) -> list[Op]:
        """See `Optimizer`: a worker has one shard, and its gradient stays where it is."""
        return []

    def prepare(self, parts: Tensor, terms: Tensor, norm: Tensor, learning_rate: Tensor) -> list[Op]:
        """See `Optimizer`; a worker's step is of its own rows alone."""
        squares, step = squares_of(self._grad), Step.allocate(learning_rate, self._number)
        update = join_calls(
            prepare_update(self._rule, self._spans, 0, self._shared.param, self._grad, self._shared.slots, step)
        )
        return [
            sum_squares.prepare(self._grad, squares),
            prepare_clip(squares, parts, terms, self._max_norm, norm, step),
            partial(self._step, update, step.grad_scale),
        ]

    def _step(self, update: Sequence[Op], grad_scale: Tensor) -> None:
        if math.isnan(grad_scale):
            return
        with self._lock:
            total = self._counter.total()
            self._number.fill_(total + 1)  # whatever it was: only the counter knows of the others' steps
            for op in update:
                op()
            self._counter.add(total - self._copied_at)
            self._copy()

    def get_state(self) -> StateTree:
        """Return the shared slots and step count."""
        return self._shared.get_state(self._counter.total())

    def set_state(self, state: StateTree) -> None:
        """Restore the shared slots bit for bit; the counter is restored separately."""
        self._shared.set_state(state)


def num_squares(size: int) -> int:
    """Return how many sums of squares a vector of this size has, one of each block."""
    return num_blocks(size)


def squares_of(vector: Tensor) -> Tensor:
    """Allocate the sums of squares of a vector's blocks."""
    return torch.zeros(num_squares(len(vector)), dtype=torch.float64, device=vector.device)


def prepare_clip(squares: Tensor, parts: Tensor, terms: Tensor, max_norm: float | None, norm: Tensor, step: Step) -> Op:
    """Return the call that adds up loss terms, finds a gradient's norm and scale, and counts the step if it is finite.

    See `clip_gradient`.
    """
    bound = math.inf if max_norm is None else max_norm
    return clip_gradient.prepare(squares, parts, bound, terms, norm, step.grad_scale, step.count)


def part_of(size: int, rank: int, workers: int) -> tuple[int, int]:
    """Return begin and end of the part of a flat vector that a worker updates; a part begins at a block."""
    blocks = num_blocks(size)
    begin, end = (min(blocks * r // workers * SQUARES_BLOCK, size) for r in (rank, rank + 1))
    return begin, end


def flat_size(model: nn.Module) -> int:
    """Return the size P of a model's flat vector: its trainable parameters, each padded to whole cache lines."""
    return sum(room_of(p) for p in model.parameters() if p.requires_grad)


def flatten(model: nn.Module, vector: Tensor | None = None, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Move a model's parameters into one vector `[P]`, and make every `p.grad` a view of another; return both.

    Call this before building objectives and fused networks, which keep those views. Each parameter begins at a cache
    line and keeps the memory order of its elements, which the encoder may have chosen for speed. `vector` and `grad`
    must hold zeros; by default they are allocated on the model's device.

    Raises:
        ValueError: a parameter is not float32.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    odd = next((p.dtype for p in params if p.dtype != torch.float32), None)
    if odd is not None:
        raise ValueError(f"the model has parameters of {odd}, expected torch.float32: convert the encoder's.")
    size, device = flat_size(model), params[0].device
    vector = memory.zeros([size], device=device) if vector is None else vector
    grad = memory.zeros([size], device=device) if grad is None else grad
    assert vector.shape == grad.shape == (size,), "the vectors are of another model"
    assert memory.begins_line(vector) and memory.begins_line(grad), "a flat vector does not begin at a cache line"
    begin = 0
    for p in params:
        strides = torch.empty_like(p).stride()  # strides of p; contiguous if p has gaps or overlaps
        p.data = vector[begin:].as_strided(p.shape, strides).copy_(p.data)
        p.grad = grad[begin:].as_strided(p.shape, strides)
        begin += room_of(p)
    return vector, grad
