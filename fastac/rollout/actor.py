"""The actor of any model: what the policy says, copied into the rollout, on whichever device the model is."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastac.contract import Policy, StateTree, read_tensor
from fastac.rollout.buffer import Rollout


class ModelActor:
    """An `Actor` that asks a `Policy` one row at a time, and remembers for it."""

    def __init__(self, policy: Policy, rollout: Rollout, generator: Generator, device: torch.device) -> None:
        """Bind the policy to the rollout; `generator` (CPU) drives the actions."""
        self._policy, self._rollout = policy, rollout
        self._generator, self._device = generator, device
        # numpy copies into these: a torch write would bump autograd's version counters
        self._action, self._log_prob = rollout.action.numpy(), rollout.log_prob.numpy()
        self._value = rollout.value.numpy()
        self._state = policy.initial_state(rollout.num_envs)  # [N, S]

    def begin(self) -> None:
        """Note the memory before row 0 and draw the rollout's noise."""
        rows = (self._rollout.num_steps, self._rollout.num_envs)
        self._rollout.state.copy_(self._state)
        self._noise = self._policy.draw_noise(rows, self._generator).to(self._device)  # [T, N, ...]

    def act(self, t: int) -> None:
        """Write row t."""
        act = self._policy.act(*self._look(t), self._noise[t])
        self._action[t] = act.action.cpu().numpy()
        self._value[t] = act.value.cpu().numpy()
        self._log_prob[t] = act.log_prob.cpu().numpy()
        self._state = act.state

    def value(self, t: int) -> None:
        """Write row t of values; the memory stays as it was."""
        self._value[t] = self._policy.value(*self._look(t)).cpu().numpy()

    def value_of(self, obs: Tensor) -> Tensor:
        """Value `obs` with the memory after the last row."""
        going_on = torch.zeros(self._rollout.num_envs, dtype=torch.bool, device=self._device)
        return self._policy.value(obs.to(self._device), self._state, going_on).cpu()

    def _look(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._rollout.obs[t].to(self._device), self._state, self._rollout.start[t].to(self._device)

    def forget(self) -> None:
        """Begin without memory."""
        self._state = self._policy.initial_state(self._rollout.num_envs)

    def get_state(self) -> StateTree:
        """The memory and the action stream."""
        return {"state": self._state.clone(), "generator": self._generator.get_state()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._state = read_tensor(state, "state").to(self._device)
        self._generator.set_state(read_tensor(state, "generator"))
