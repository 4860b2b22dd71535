"""How a gradient reaches the parameters.

All parameters of a model are made views of one flat tensor, and so are their gradients: clipping is
one norm, an optimiser step one pass over a few vectors whatever the number of layers. Each begins at a cache line
(see `fastac.memory`); the gaps between them hold zeros, which add nothing to a norm and stay as they are. The rules are
kernels of our own: `torch.optim` imports torch's compiler, which costs two seconds at start-up, and goes
over the vectors seven times; tests hold ours to torch's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastac import memory
from fastac.contract import Group, StateTree, WorkerFailure, read_count, read_tensor
from fastac.kernels import adam_step, rmsprop_step


class Optimizer(Protocol):
    """Takes optimiser steps along the gradients that the parameters hold."""

    def step(self, learning_rate: float) -> float:
        """Clip and step; return the gradient norm before clipping.

        A norm that is NaN or infinite is returned and nothing is stepped.
        """

    def get_state(self) -> StateTree:
        """The optimiser's slots and step count."""

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""


class UpdateRule(Protocol):
    """An optimiser's formula over one flat vector.

    Attributes:
        slots: its statistics, of which each parameter has one, and the value that they begin with.
    """

    slots: Mapping[str, float]

    def step(
        self,
        param: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        grad_scale: float,
        learning_rate: float,
        count: int,
    ) -> None:
        """Step `param` and `slots`, all `[P]`, in place along `grad * grad_scale`; `count` is of steps, with this."""


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), as torch.optim.Adam does it."""

    _BETA1, _BETA2 = 0.9, 0.999

    def __init__(self, eps: float) -> None:
        """Take epsilon, which is added to the root."""
        self._eps = eps
        self.slots: Mapping[str, float] = {"average": 0.0, "square": 0.0}

    def step(
        self,
        param: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        grad_scale: float,
        learning_rate: float,
        count: int,
    ) -> None:
        """See `UpdateRule`."""
        average, square = slots["average"], slots["square"]
        adam_step(param, grad, average, square, grad_scale, learning_rate, self._BETA1, self._BETA2, self._eps, count)


class RMSprop:
    """RMSprop (Hinton 2012), in torch's form or in TensorFlow 1's.

    The difference decided A2C's stability in published results (DLR-RM/stable-baselines3 PR 110)::

        square = alpha * square + (1 - alpha) * grad**2          from 0 (torch) or 1 (TensorFlow)
        param -= lr * grad / (sqrt(square) + eps)                torch
        param -= lr * grad / sqrt(square + eps)                  TensorFlow
    """

    _ALPHA = 0.99

    def __init__(self, eps: float, tensorflow: bool) -> None:
        """Take epsilon and the form."""
        self._eps, self._tensorflow = eps, tensorflow
        self.slots: Mapping[str, float] = {"square": 1.0 if tensorflow else 0.0}

    def step(
        self,
        param: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        grad_scale: float,
        learning_rate: float,
        count: int,
    ) -> None:
        """See `UpdateRule`."""
        rmsprop_step(param, grad, slots["square"], grad_scale, learning_rate, self._ALPHA, self._eps, self._tensorflow)


@dataclass(frozen=True, slots=True)
class FlatParameters:
    """The parameters of a model and the statistics that an optimiser keeps of them.

    Attributes:
        param: `[P]`, see `flatten`.
        slots: `[P]` each, by name.
    """

    param: Tensor
    slots: Mapping[str, Tensor]

    def get_state(self, steps: int) -> StateTree:
        """Return the slots, and how many steps they have seen; parameters are the model's."""
        return {**{name: slot.clone() for name, slot in self.slots.items()}, "steps": steps}

    def set_state(self, state: StateTree) -> int:
        """Restore the slots bit for bit; return the steps that they have seen.

        Raises:
            ValueError: they are of another network, or saved in another layout.
        """
        for name, slot in self.slots.items():
            slot.copy_(read_tensor(state, name, slot))
        return read_count(state, "steps")


class LocalOptimizer:
    """One rule for a model whose gradients are those of this process alone."""

    def __init__(self, model: nn.Module, rule: UpdateRule, max_grad_norm: float | None) -> None:
        """Make `model`'s parameters views of one vector, to be stepped by `rule`.

        Args:
            model: on its device already; its parameters keep their names and shapes.
            rule: the optimiser.
            max_grad_norm: clip the global gradient norm to this; None does not clip.

        Raises:
            ValueError: a parameter is not float32.
        """
        param, self._grad = flatten(model)
        slots = {name: torch.full_like(param, value) for name, value in rule.slots.items()}
        self._vectors = FlatParameters(param, slots)
        self._rule, self._max_norm = rule, max_grad_norm
        self._steps = 0

    def step(self, learning_rate: float) -> float:
        """See `Optimizer`."""
        norm = float(self._grad.norm())
        if math.isfinite(norm):
            self._steps += 1
            vectors, scale = self._vectors, clip_scale(norm, self._max_norm)
            self._rule.step(vectors.param, self._grad, vectors.slots, scale, learning_rate, self._steps)
        return norm

    def get_state(self) -> StateTree:
        """Return the slots and the step count; parameters are the model's."""
        return self._vectors.get_state(self._steps)

    def set_state(self, state: StateTree) -> None:
        """Restore them bit for bit."""
        self._steps = self._vectors.set_state(state)


class SharedOptimizer:
    """One rule for the model that workers in step share: each adds up and steps a part of it.

    Parameters, statistics and every worker's gradient are in shared memory, so nothing is sent, and each number is
    stepped once and not once per worker: at a million parameters memory is what a step costs. The sums are in
    the order of the workers, so that results do not depend on who comes first. A worker that is killed within
    `step` leaves a part of the parameters a step ahead of the others, which nobody saves.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: UpdateRule,
        max_grad_norm: float | None,
        group: Group,
        shared: FlatParameters,
        grads: Tensor,
    ) -> None:
        """Make `model`'s parameters views of the shared ones, which get its values, and its gradients of a row.

        Args:
            model: on the CPU, the same in every worker; its parameters keep their names and shapes.
            rule: the optimiser.
            max_grad_norm: clip the global gradient norm to this; None does not clip.
            group: whose gradients add up; a worker's is that of its share of one mean.
            shared: everybody's, of `flat_size(model)`.
            grads: `[K, P]`, a row for each worker.

        Raises:
            ValueError: a parameter is not float32.
        """
        flatten(model, shared.param, grads[group.rank])
        self._grad, self._shared = grads[group.rank], shared
        lines = len(shared.param) // memory.FLOATS  # a worker's part begins at a cache line
        begin, end = (lines * rank // group.size * memory.FLOATS for rank in (group.rank, group.rank + 1))
        self._parts = [grad[begin:end] for grad in grads]  # of everybody's gradient, what is this worker's to step
        self._param = shared.param[begin:end]
        self._slots = {name: slot[begin:end] for name, slot in shared.slots.items()}
        self._sum = memory.empty(self._param.shape)
        self._rule, self._max_norm, self._group = rule, max_grad_norm, group
        self._square = np.zeros(1)
        self._steps = 0
        self._is_torn = False

    def step(self, learning_rate: float) -> float:
        """See `Optimizer`; when it returns, everybody has read everybody's gradient."""
        self._meet()  # every gradient is whole
        torch.add(self._parts[0], self._parts[1], out=self._sum)
        for part in self._parts[2:]:
            self._sum.add_(part)
        self._square[0] = float(self._sum.dot(self._sum))
        norm = math.sqrt(float(self._group.gather(self._square).sum()))
        if math.isfinite(norm):
            self._steps += 1
            scale = clip_scale(norm, self._max_norm)
            self._is_torn = True
            self._rule.step(self._param, self._sum, self._slots, scale, learning_rate, self._steps)
        self._meet()  # every part is stepped
        self._is_torn = False
        return norm

    def _meet(self) -> None:
        self._group.gather(self._square)

    def get_state(self) -> StateTree:
        """Return everybody's slots and the step count; parameters are the model's.

        Raises:
            WorkerFailure: a worker was lost within a step, so a part of them is a step ahead.
        """
        if self._is_torn:
            raise WorkerFailure("a worker was lost within a step, of which only a part was taken")
        return self._shared.get_state(self._steps)

    def set_state(self, state: StateTree) -> None:
        """Restore them bit for bit; every worker restores the same."""
        self._steps = self._shared.set_state(state)


class UpdateCounter(Protocol):
    """Counts the steps that all workers have taken along the parameters that they share."""

    def total(self) -> int:
        """Everybody's steps so far."""

    def add(self, staleness: int) -> None:
        """Count a step of this worker, between whose copy and step lay `staleness` steps by others."""


class HogwildOptimizer:
    """One rule for parameters that workers share and step without waiting for each other.

    Hogwild (Niu et al. 2011, arXiv 1106.5730), as A3C uses it (Mnih et al. 2016, arXiv 1602.01783): the
    gradient is of this worker's own copy of the parameters and stays in this process; the step reads and
    writes parameters and statistics in shared memory while others do the same. Where two meet, an element
    may keep one of the two changes; none is torn, being 4 bytes wide. After its step the worker copies the
    parameters anew. Staleness is exact under the lock; without it a step that is in progress while this one is
    taken or copied counts on one side or the other.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: UpdateRule,
        max_grad_norm: float | None,
        shared: FlatParameters,
        counter: UpdateCounter,
        lock: AbstractContextManager[object],
    ) -> None:
        """Make `model` this worker's copy of the shared parameters.

        Args:
            model: on the CPU; its parameters become views of one vector.
            rule: the optimiser.
            max_grad_norm: clip the norm of this worker's gradient to this; None does not clip.
            shared: everybody's, of `flat_size(model)`.
            counter: counts everybody's steps.
            lock: held from a step to the end of the copy after it; a null context for none.

        Raises:
            ValueError: a parameter is not float32.
        """
        self._param, self._grad = flatten(model)
        assert self._param.shape == shared.param.shape, "the shared vector is of another model"
        self._rule, self._max_norm = rule, max_grad_norm
        self._shared, self._counter, self._lock = shared, counter, lock
        self.copy()

    def copy(self) -> None:
        """Copy the shared parameters."""
        with self._lock:
            self._copy()

    def _copy(self) -> None:
        self._copied_at = self._counter.total()
        self._param.copy_(self._shared.param)

    def step(self, learning_rate: float) -> float:
        """See `Optimizer`."""
        norm = float(self._grad.norm())
        if math.isfinite(norm):
            scale = clip_scale(norm, self._max_norm)
            with self._lock:
                total = self._counter.total()
                self._rule.step(self._shared.param, self._grad, self._shared.slots, scale, learning_rate, total + 1)
                self._counter.add(total - self._copied_at)
                self._copy()
        return norm

    def get_state(self) -> StateTree:
        """Return everybody's slots and step count."""
        return self._shared.get_state(self._counter.total())

    def set_state(self, state: StateTree) -> None:
        """Restore everybody's slots bit for bit; the counter keeps its own."""
        self._shared.set_state(state)


def clip_scale(norm: float, max_norm: float | None) -> float:
    """Return what clips a gradient of that norm, as torch.nn.utils.clip_grad_norm_ does; 1 where it need not be."""
    return 1.0 if max_norm is None or norm <= max_norm else max_norm / (norm + 1e-6)


def flat_size(model: nn.Module) -> int:
    """Return the size P of a model's flat vector: its trainable parameters, each filled up to whole cache lines."""
    return sum(_room_of(p) for p in model.parameters() if p.requires_grad)


def _room_of(param: Tensor) -> int:
    return memory.whole_lines(param.numel(), param.itemsize)


def flatten(model: nn.Module, vector: Tensor | None = None, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Move a model's parameters into one vector `[P]` and give them gradients in another; return both.

    Each parameter begins at a cache line and keeps the order that its elements have in memory, which its encoder may
    have chosen for speed. The vectors are those given, which hold zeros, or new ones where the model is.

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
        strides = torch.empty_like(p).stride()  # those of p, or where that has gaps or overlaps, contiguous ones
        p.data = vector[begin:].as_strided(p.shape, strides).copy_(p.data)
        p.grad = grad[begin:].as_strided(p.shape, strides)
        begin += _room_of(p)
    return vector, grad
