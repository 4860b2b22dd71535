"""How a gradient reaches the parameters.

All parameters of a model are made views of one flat tensor, and so are their gradients: clipping is
one norm, an optimiser step a few operations on one vector whatever the number of layers. The rules
are written out here because `torch.optim` imports torch's compiler, which costs two seconds at
start-up and is of no use to us; tests hold them to torch's.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastac.contract import Alone, Group, StateTree, read_number, read_tensor


class Apply(Protocol):
    """Takes optimiser steps along the gradients that the parameters hold."""

    def zero_grad(self) -> None:
        """Begin a new gradient."""

    def step(self, learning_rate: float) -> float:
        """Clip and step; return the gradient norm before clipping.

        A norm that is NaN or infinite is returned and nothing is stepped.
        """

    def get_state(self) -> StateTree:
        """The optimiser's slots."""

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""


class Rule(Protocol):
    """An optimiser's formula over one flat vector."""

    def prepare(self, param: Tensor) -> None:
        """Allocate the slots for `param` `[P]`."""

    def step(self, param: Tensor, grad: Tensor, learning_rate: float) -> None:
        """Step `param` `[P]` in place."""

    def get_state(self) -> StateTree:
        """The slots."""

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), operation for operation as torch.optim.Adam does it."""

    _BETA1, _BETA2 = 0.9, 0.999

    def __init__(self, eps: float) -> None:
        """Take epsilon, which is added to the root."""
        self._eps = eps
        self._steps = 0

    def prepare(self, param: Tensor) -> None:
        """Allocate both averages `[P]`."""
        self._average, self._square = torch.zeros_like(param), torch.zeros_like(param)
        self._root = torch.zeros_like(param)

    def step(self, param: Tensor, grad: Tensor, learning_rate: float) -> None:
        """Step in place."""
        self._steps += 1
        self._average.lerp_(grad, 1.0 - self._BETA1)
        self._square.mul_(self._BETA2).addcmul_(grad, grad, value=1.0 - self._BETA2)
        correction1 = 1.0 - self._BETA1**self._steps
        correction2 = 1.0 - self._BETA2**self._steps
        root = torch.sqrt(self._square, out=self._root).div_(math.sqrt(correction2)).add_(self._eps)
        param.addcdiv_(self._average, root, value=-learning_rate / correction1)

    def get_state(self) -> StateTree:
        """Return averages and step count."""
        return {"average": self._average.clone(), "square": self._square.clone(), "steps": self._steps}

    def set_state(self, state: StateTree) -> None:
        """Restore them bit for bit."""
        self._average.copy_(read_tensor(state, "average"))
        self._square.copy_(read_tensor(state, "square"))
        self._steps = int(read_number(state, "steps"))


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

    def prepare(self, param: Tensor) -> None:
        """Allocate the average of squares `[P]`."""
        self._square = torch.ones_like(param) if self._tensorflow else torch.zeros_like(param)

    def step(self, param: Tensor, grad: Tensor, learning_rate: float) -> None:
        """Step in place."""
        self._square.mul_(self._ALPHA).addcmul_(grad, grad, value=1.0 - self._ALPHA)
        root = self._square.add(self._eps).sqrt_() if self._tensorflow else self._square.sqrt().add_(self._eps)
        param.addcdiv_(grad, root, value=-learning_rate)

    def get_state(self) -> StateTree:
        """Return the average."""
        return {"square": self._square.clone()}

    def set_state(self, state: StateTree) -> None:
        """Restore it bit for bit."""
        self._square.copy_(read_tensor(state, "square"))


class LocalApply:
    """One rule for a model whose gradients are those of this process alone, or summed over a group.

    Every worker of a group holds its own copy of the model and takes the same step on the same sum,
    so the copies stay equal bit for bit and no parameter is ever sent.
    """

    def __init__(self, model: nn.Module, rule: Rule, max_grad_norm: float | None, group: Group | None = None) -> None:
        """Make `model`'s parameters views of one vector, to be stepped by `rule`.

        Args:
            model: on its device already; its parameters keep their names and shapes.
            rule: the optimiser.
            max_grad_norm: clip the global gradient norm to this; None does not clip.
            group: whose gradients add up; a worker's is that of its share of one mean.

        Raises:
            ValueError: a parameter is not float32.
        """
        params = [p for p in model.parameters() if p.requires_grad]
        odd = next((p.dtype for p in params if p.dtype != torch.float32), None)
        if odd is not None:
            raise ValueError(f"the model has parameters of {odd}, expected torch.float32: convert the encoder's.")
        self._param, self._grad = _flatten(params)
        self._rule, self._max_norm, self._group = rule, max_grad_norm, group or Alone()
        rule.prepare(self._param)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self._param.numel()

    def zero_grad(self) -> None:
        """Begin a new gradient."""
        self._grad.zero_()

    def step(self, learning_rate: float) -> float:
        """See `Apply`."""
        if self._group.size > 1:
            grad = self._grad.numpy()
            np.sum(self._group.gather(grad), axis=0, out=grad)
        norm = float(self._grad.norm())
        if math.isfinite(norm):
            if self._max_norm is not None and norm > self._max_norm:
                self._grad.mul_(self._max_norm / (norm + 1e-6))
            self._rule.step(self._param, self._grad, learning_rate)
        return norm

    def get_state(self) -> StateTree:
        """Return the rule's slots; parameters are the model's."""
        return self._rule.get_state()

    def set_state(self, state: StateTree) -> None:
        """Restore the slots bit for bit."""
        self._rule.set_state(state)


def _flatten(params: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Move parameters into one vector `[P]` and give them gradients in another; return both."""
    vector = torch.cat([p.detach().reshape(-1) for p in params])
    grad = torch.zeros_like(vector)
    sizes = [p.numel() for p in params]
    for p, data, slot in zip(params, vector.split(sizes), grad.split(sizes), strict=True):
        p.data = data.view_as(p)
        p.grad = slot.view_as(p)
    return vector, grad
