"""Update rules: the formula by which an optimizer changes parameters, over one flat vector.

They are kernels of our own: `torch.optim` imports torch's compiler, which costs two seconds at start-up, and passes
over the vectors seven times. Tests compare our rules with torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastac.kernels import Op, adam_step, rmsprop_step


class UpdateRule(Protocol):
    """An optimiser's formula over one flat vector.

    Attributes:
        slots: the statistics kept for each parameter, by name, with their initial values.
    """

    slots: Mapping[str, float]

    def prepare(self, param: Tensor, grad: Tensor, slots: Mapping[str, Tensor], step: Step) -> Op:
        """Return the call that updates `param` and `slots`, all `[P]`, in place, as `step` says."""


@dataclass(frozen=True, slots=True)
class Step:
    """The numbers of a step, `[1]` float64 each; they change between steps.

    Attributes:
        grad_scale: the gradient used is grad * grad_scale; NaN updates nothing.
        learning_rate: the step size; `[2]` with that of the critic's own parameters.
        count: the number of steps including this one.
    """

    grad_scale: Tensor
    learning_rate: Tensor
    count: Tensor

    @classmethod
    def allocate(cls, learning_rate: Tensor, count: Tensor) -> Step:
        """Allocate the scale."""
        return cls(torch.zeros(1, dtype=torch.float64), learning_rate, count)


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), as in torch.optim.Adam."""

    _BETA1, _BETA2 = 0.9, 0.999

    def __init__(self, eps: float) -> None:
        """Store epsilon, which is added to the root."""
        self._eps = eps
        self.slots: Mapping[str, float] = {"average": 0.0, "square": 0.0}

    def prepare(self, param: Tensor, grad: Tensor, slots: Mapping[str, Tensor], step: Step) -> Op:
        """See `UpdateRule`."""
        vectors = param, grad, slots["average"], slots["square"]
        settings = self._BETA1, self._BETA2, self._eps
        return adam_step.prepare(*vectors, step.grad_scale, step.learning_rate, *settings, step.count)


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

    def prepare(self, param: Tensor, grad: Tensor, slots: Mapping[str, Tensor], step: Step) -> Op:
        """See `UpdateRule`."""
        settings = self._ALPHA, self._eps, self._tensorflow
        return rmsprop_step.prepare(param, grad, slots["square"], step.grad_scale, step.learning_rate, *settings)
