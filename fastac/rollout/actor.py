"""Actors for any model on any device: they copy the policy's outputs into the rollout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Generator, Tensor

from fastac.contract import Act, Policy, StateTree, Trainable, read_tensor
from fastac.rollout.buffer import Rollout


class ModelActor:
    """An `Actor` that calls a `Policy` row by row and keeps its recurrent state."""

    def __init__(self, policy: Policy, rollout: Rollout, generator: Generator, device: torch.device) -> None:
        """Bind the policy to the rollout; `generator` (CPU) samples the actions."""
        self._policy, self._rollout = policy, rollout
        self._generator, self._device = generator, device
        # numpy writes to these: a torch write would increase autograd's version counters
        self._action, self._log_prob = rollout.action.numpy(), rollout.log_prob.numpy()
        self._value = rollout.value.numpy()
        self._state = policy.initial_state(rollout.num_envs)  # [N, S]

    def begin(self) -> None:
        """Record the recurrent state before row 0 and draw the rollout's noise."""
        rows = (self._rollout.num_steps, self._rollout.num_envs)
        self._rollout.state.copy_(self._state)
        self._noise = self._policy.draw_noise(rows, self._generator).to(self._device)  # [T, N, ...]

    def act(self, t: int) -> None:
        """Write row t."""
        act = self._act(*self._look(t), self._noise[t])
        self._action[t] = act.action.cpu().numpy()
        self._value[t] = act.value.cpu().numpy()
        self._log_prob[t] = act.log_prob.cpu().numpy()
        self._state = act.state

    def _act(self, obs: Tensor, state: Tensor, start: Tensor, noise: Tensor) -> Act:
        return self._policy.act(obs, state, start, noise)

    def value(self, t: int) -> None:
        """Write row t of values; the recurrent state does not change."""
        self._value[t] = self._policy.value(*self._look(t)).cpu().numpy()

    def value_of(self, obs: Tensor) -> Tensor:
        """Return the values of `obs`, given the recurrent state after the last row."""
        going_on = torch.zeros(self._rollout.num_envs, dtype=torch.bool, device=self._device)
        return self._policy.value(obs.to(self._device), self._state, going_on).cpu()

    def _look(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._rollout.observation(t).to(self._device), self._state, self._rollout.start[t].to(self._device)

    def forget(self) -> None:
        """Reset the recurrent state."""
        self._state = self._policy.initial_state(self._rollout.num_envs)

    def get_state(self) -> StateTree:
        """Return the recurrent state and the action stream."""
        return {"state": self._state.clone(), "generator": self._generator.get_state()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._state = read_tensor(state, "state", self._state).to(self._device)
        self._generator.set_state(read_tensor(state, "generator", self._generator.get_state()))


@dataclass(slots=True)
class Graphs:
    """Outputs of the forward passes of a rollout, by row, with their autograd graphs."""

    params: list[Tensor] = field(default_factory=list)  # [N, P] each
    value: list[Tensor] = field(default_factory=list)  # [N] each


class Sampling(Protocol):
    """A head that samples actions and computes their log-probs."""

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Return actions `[N, ...]`."""

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies `[N]`."""


class GraphActor(ModelActor):
    """Acts with gradients enabled and keeps the graphs, so the update needs no forward pass of its own.

    Attributes:
        graphs: of the rollout's rows so far.
    """

    def __init__(
        self,
        policy: Policy,
        model: Trainable,
        head: Sampling,
        rollout: Rollout,
        generator: Generator,
        device: torch.device,
    ) -> None:
        """Bind `policy` to the rollout; `model` and `head` belong to the same network."""
        super().__init__(policy, rollout, generator, device)
        self._model, self._head = model, head
        self.graphs = Graphs()

    def begin(self) -> None:
        """Detach the recurrent state from the last rollout's graphs and free them."""
        self._state = self._state.detach()
        self.graphs.params.clear()
        self.graphs.value.clear()
        super().begin()

    def _act(self, obs: Tensor, state: Tensor, start: Tensor, noise: Tensor) -> Act:
        params, value, state = self._model(obs, state, start)
        self.graphs.params.append(params)
        self.graphs.value.append(value)
        with torch.no_grad():
            action = self._head.sample(params, noise)
            log_prob, _ = self._head.log_prob_entropy(params, action)
        return Act(action, log_prob, value.detach(), state)

    def get_state(self) -> StateTree:
        """Return the recurrent state and the action stream."""
        self._state = self._state.detach()
        return super().get_state()
