"""How a gradient reaches the parameters, and the optimisers that torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, overload

import numpy as np
import torch
from torch import Tensor, nn

from fastac.contract import StateTree, read_branch, read_tensor


class Apply(Protocol):
    """Takes one optimiser step on a loss."""

    def __call__(self, loss: Tensor, learning_rate: float) -> float:
        """Differentiate, clip and step; return the gradient norm before clipping.

        A norm that is NaN or infinite is returned and nothing is stepped.
        """

    def get_state(self) -> StateTree:
        """The optimiser's slots."""

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""


class LocalApply:
    """One process, one model, one optimiser."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
        """Step `optimizer` on `model`'s parameters, clipped to a global norm (None: not clipped)."""
        self._parameters = list(model.parameters())
        self._optimizer = optimizer
        self._max_norm = float("inf") if max_grad_norm is None else max_grad_norm

    def __call__(self, loss: Tensor, learning_rate: float) -> float:
        """See `Apply`."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm).item()
        if np.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        return norm

    def get_state(self) -> StateTree:
        """Return the slots by parameter index; hyperparameters are the config's."""
        slots: Mapping[int, Mapping[str, Tensor]] = self._optimizer.state_dict()["state"]
        return {str(index): {name: slot.clone() for name, slot in slots[index].items()} for index in slots}

    def set_state(self, state: StateTree) -> None:
        """Restore the slots bit for bit."""
        slots: dict[int, dict[str, Tensor]] = {}
        for index in state:
            named = read_branch(state, index)
            slots[int(index)] = {name: read_tensor(named, name) for name in named}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": slots, "param_groups": groups})


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop as in TensorFlow 1: epsilon inside the square root, the average starting at 1.

    The difference decided A2C's stability in published results (DLR-RM/stable-baselines3 PR 110)::

        average = alpha * average + (1 - alpha) * grad**2
        param  -= lr * grad / sqrt(average + eps)
    """

    def __init__(self, params: list[nn.Parameter], lr: float, alpha: float = 0.99, eps: float = 1e-5) -> None:
        """Take the parameters and the usual settings."""
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every parameter that has a gradient; closures are not supported."""
        assert closure is None, "RMSpropTF takes no closure"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            averages = [self._average(p) for p in params]
            torch._foreach_mul_(averages, group["alpha"])
            torch._foreach_addcmul_(averages, grads, grads, 1.0 - group["alpha"])
            roots = torch._foreach_add(averages, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(params, grads, roots, -group["lr"])
        return None

    def _average(self, param: nn.Parameter) -> Tensor:
        state = self.state[param]
        if not state:
            state["square_avg"] = torch.ones_like(param)
        average: Tensor = state["square_avg"]
        return average
