"""Optimizers: clip the gradient and update the parameters.

All parameters of a model become views of one flat tensor, and so do their gradients. Clipping is then one norm and
an update is one pass over a few vectors, whatever the number of layers. Each parameter begins at a cache line (see
`fastac.memory`); the gaps hold zeros, which add nothing to the norm and stay zero. The update rules are kernels of
our own: `torch.optim` imports torch's compiler, which costs two seconds at start-up, and passes over the vectors
seven times. Tests compare our rules with torch's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fastac import memory
from fastac.contract import Group, StateTree, WorkerFailure, read_count, read_tensor
from fastac.kernels import adam_step, rmsprop_step, sum_squares


class Optimizer(Protocol):
    """Updates the parameters with their current gradients."""

    def step(self, learning_rate: float) -> float:
        """Clip the gradient and update; return the gradient norm before clipping.

        If the norm is NaN or infinite, it is returned and nothing is updated.
        """

    def get_state(self) -> StateTree:
        """Return the optimiser's slots and step count."""

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""


class UpdateRule(Protocol):
    """An optimiser's formula over one flat vector.

    Attributes:
        slots: the statistics kept for each parameter, by name, with their initial values.
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
        """Update `param` and `slots`, all `[P]`, in place with `grad * grad_scale`; `count` includes this step."""


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), as in torch.optim.Adam."""

    _BETA1, _BETA2 = 0.9, 0.999

    def __init__(self, eps: float) -> None:
        """Store epsilon, which is added to the root."""
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
    """RMSprop (Hinton 2012), in the form of torch or of TensorFlow 1.

    The difference decided A2C's stability in published results (DLR-RM/stable-baselines3 PR 110)::

        square = alpha * square + (1 - alpha) * grad**2          initially 0 (torch) or 1 (TensorFlow)
        param -= lr * grad / (sqrt(square) + eps)                torch
        param -= lr * grad / sqrt(square + eps)                  TensorFlow
    """

    _ALPHA = 0.99

    def __init__(self, eps: float, tensorflow: bool) -> None:
        """Store epsilon and the form."""
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
    """The parameters of a model and the optimizer's statistics of them.

    Attributes:
        param: `[P]`, see `flatten`.
        slots: `[P]` each, by name.
    """

    param: Tensor
    slots: Mapping[str, Tensor]

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

    def __init__(self, model: nn.Module, rule: UpdateRule, max_grad_norm: float | None) -> None:
        """Make `model`'s parameters views of one vector, updated by `rule`.

        Args:
            model: already on its device; its parameters keep their names and shapes.
            rule: the update rule.
            max_grad_norm: clip the global gradient norm to this; None does not clip.

        Raises:
            ValueError: a parameter is not float32.
        """
        param, self._grad = flatten(model)
        slots = {name: torch.full_like(param, value) for name, value in rule.slots.items()}
        self._vectors = FlatParameters(param, slots)
        self._rule, self._max_norm = rule, max_grad_norm
        self._square = torch.zeros(1, dtype=torch.float64, device=param.device)
        self._steps = 0

    def step(self, learning_rate: float) -> float:
        """See `Optimizer`."""
        sum_squares(self._grad, self._square)
        norm = math.sqrt(float(self._square))
        if math.isfinite(norm):
            self._steps += 1
            vectors, scale = self._vectors, clip_scale(norm, self._max_norm)
            self._rule.step(vectors.param, self._grad, vectors.slots, scale, learning_rate, self._steps)
        return norm

    def get_state(self) -> StateTree:
        """Return the slots and the step count; the parameters belong to the model's state."""
        return self._vectors.get_state(self._steps)

    def set_state(self, state: StateTree) -> None:
        """Restore the slots and the step count bit for bit."""
        self._steps = self._vectors.set_state(state)


class SharedOptimizer:
    """Optimizer of a model shared by workers in step: each worker sums and updates one part of it.

    Parameters, statistics and all workers' gradients are in shared memory, so nothing is sent. Each element is updated
    once, not once per worker: at a million parameters a step is limited by memory access. Gradients are summed in
    worker order, so results do not depend on timing. A worker killed inside `step` leaves a part of the parameters one
    step ahead of the rest; such a state is never saved.
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
        """Make `model`'s parameters views of the shared vector, and its gradients views of a row of `grads`.

        The shared vector is overwritten with the model's values.

        Args:
            model: on the CPU, the same in every worker; its parameters keep their names and shapes.
            rule: the update rule.
            max_grad_norm: clip the global gradient norm to this; None does not clip.
            group: the workers whose gradients are summed; each gradient is already weighted for the global mean.
            shared: shared by all workers, of `flat_size(model)`.
            grads: `[K, P]`, one row per worker.

        Raises:
            ValueError: a parameter is not float32.
        """
        flatten(model, shared.param, grads[group.rank])
        self._grad, self._shared = grads[group.rank], shared
        lines = len(shared.param) // memory.FLOATS  # a worker's part begins at a cache line
        begin, end = (lines * rank // group.size * memory.FLOATS for rank in (group.rank, group.rank + 1))
        self._parts = [grad[begin:end] for grad in grads]  # this worker's part of every worker's gradient
        self._param = shared.param[begin:end]
        self._slots = {name: slot[begin:end] for name, slot in shared.slots.items()}
        self._sum = memory.empty(self._param.shape)
        self._rule, self._max_norm, self._group = rule, max_grad_norm, group
        self._square = torch.zeros(1, dtype=torch.float64)
        self._steps = 0
        self._is_torn = False

    def step(self, learning_rate: float) -> float:
        """See `Optimizer`; when it returns, every worker has read all gradients.

        Call it after a `Group.gather` of all workers that follows their gradients, such as that of the loss terms: so
        all gradients are complete.
        """
        torch.add(self._parts[0], self._parts[1], out=self._sum)
        for part in self._parts[2:]:
            self._sum.add_(part)
        sum_squares(self._sum, self._square)
        norm = math.sqrt(float(self._group.gather(self._square.numpy()).sum()))
        if math.isfinite(norm):
            self._steps += 1
            scale = clip_scale(norm, self._max_norm)
            self._is_torn = True
            self._rule.step(self._param, self._sum, self._slots, scale, learning_rate, self._steps)
        self._group.gather(self._square.numpy())  # all parts are updated
        self._is_torn = False
        return norm

    def get_state(self) -> StateTree:
        """Return the shared slots and the step count; the parameters belong to the model's state.

        Raises:
            WorkerFailure: a worker was lost inside a step, so a part of the parameters is one step ahead.
        """
        if self._is_torn:
            raise WorkerFailure("a worker was lost within a step, of which only a part was taken")
        return self._shared.get_state(self._steps)

    def set_state(self, state: StateTree) -> None:
        """Restore the slots and the step count bit for bit; every worker restores the same state."""
        self._steps = self._shared.set_state(state)


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
    ) -> None:
        """Make `model` this worker's copy of the shared parameters.

        Args:
            model: on the CPU; its parameters become views of one vector.
            rule: the update rule.
            max_grad_norm: clip the norm of this worker's gradient to this; None does not clip.
            shared: shared by all workers, of `flat_size(model)`.
            counter: counts the updates of all workers.
            lock: held from a step until the copy after it is done; a null context for no lock.

        Raises:
            ValueError: a parameter is not float32.
        """
        self._param, self._grad = flatten(model)
        assert self._param.shape == shared.param.shape, "the shared vector is of another model"
        self._rule, self._max_norm = rule, max_grad_norm
        self._shared, self._counter, self._lock = shared, counter, lock
        self._square = torch.zeros(1, dtype=torch.float64)
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
        sum_squares(self._grad, self._square)
        norm = math.sqrt(float(self._square))
        if math.isfinite(norm):
            scale = clip_scale(norm, self._max_norm)
            with self._lock:
                total = self._counter.total()
                self._rule.step(self._shared.param, self._grad, self._shared.slots, scale, learning_rate, total + 1)
                self._counter.add(total - self._copied_at)
                self._copy()
        return norm

    def get_state(self) -> StateTree:
        """Return the shared slots and step count."""
        return self._shared.get_state(self._counter.total())

    def set_state(self, state: StateTree) -> None:
        """Restore the shared slots bit for bit; the counter is restored separately."""
        self._shared.set_state(state)


def clip_scale(norm: float, max_norm: float | None) -> float:
    """Return the factor that clips a gradient of this norm, 1 if it needs none; as torch.nn.utils.clip_grad_norm_."""
    return 1.0 if max_norm is None or norm <= max_norm else max_norm / (norm + 1e-6)


def flat_size(model: nn.Module) -> int:
    """Return the size P of a model's flat vector: its trainable parameters, each padded to whole cache lines."""
    return sum(_room_of(p) for p in model.parameters() if p.requires_grad)


def _room_of(param: Tensor) -> int:
    return memory.whole_lines(param.numel(), param.itemsize)


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
        begin += _room_of(p)
    return vector, grad
