"""Acting outside of training: by the fused network's actor if available, else by the module itself."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor

from fastac.contract import ActionArray, Policy
from fastac.learning.fused import FusedNetwork, is_fusable
from fastac.learning.fused.network import Activations, ForwardPass
from fastac.learning.fused.recurrent import Sequences
from fastac.learning.optimizer import flatten
from fastac.models import ActorCritic, CategoricalHead


class Player(Protocol):
    """Chooses actions for a batch of environments, step by step."""

    def begin(self) -> None:
        """Start an episode in every environment; read the weights again."""

    def act(self, obs: Tensor, start: Tensor, noise: Generator | None) -> ActionArray:
        """Return actions `[N, *action_shape]`: sampled by `noise` (CPU), or the most likely ones.

        Args:
            obs: `[N, *obs_shape]`; it must be in the same memory in every call.
            start: `[N]` bool, whether an episode begins there.
            noise: drives the sampling; None takes the most likely actions.
        """


class ModulePlayer:
    """Plays with any policy."""

    def __init__(self, policy: Policy, num_envs: int, device: torch.device) -> None:
        """Take a policy whose parameters are on `device`."""
        self._policy, self._num_envs, self._device = policy, num_envs, device
        self._state = policy.initial_state(num_envs)

    def begin(self) -> None:
        """Reset the recurrent state."""
        self._state = self._policy.initial_state(self._num_envs)

    def act(self, obs: Tensor, start: Tensor, noise: Generator | None) -> ActionArray:
        """See `Player`."""
        obs, start = obs.to(self._device), start.to(self._device)
        if noise is None:
            action, self._state = self._policy.greedy(obs, self._state, start)
        else:
            drawn = self._policy.draw_noise((len(obs),), noise).to(self._device)
            action, _, _, self._state = self._policy.act(obs, self._state, start, drawn)
        actions: ActionArray = action.cpu().numpy()
        return actions


class FusedPlayer:
    """Plays with a fused network on the CPU: no graph, no critic, no allocations except the actions."""

    def __init__(self, model: ActorCritic, num_envs: int) -> None:
        """Take a model for which `is_fusable` holds."""
        if any(p.grad is None for p in model.parameters()):
            flatten(model)  # the network also needs gradient tensors
        self._network, self._head = FusedNetwork(model), model.head
        self._state = model.initial_state(num_envs)
        self._start = torch.zeros(num_envs, dtype=torch.bool)
        sequences = Sequences(self._state, self._start, moves_on=True) if self._network.cores else None
        one = Activations.for_step(self._network, num_envs)
        self._pass = ForwardPass(self._network, one, 0, num_envs, sequences)
        self._logits = self._pass.params.numpy() if type(self._head) is CategoricalHead else None

    def begin(self) -> None:
        """Read the weights and reset the recurrent state."""
        self._network.refresh()
        self._state.zero_()

    def act(self, obs: Tensor, start: Tensor, noise: Generator | None) -> ActionArray:
        """See `Player`."""
        self._start.copy_(start)
        self._pass.forward_actor(obs)
        if noise is None and self._logits is not None:
            best: ActionArray = self._logits.argmax(axis=1)  # for small batches a fifth of torch's time
            return best
        params, head = self._pass.params, self._head
        with torch.no_grad():
            action = head.mode(params) if noise is None else head.sample(params, head.draw_noise((len(obs),), noise))
        actions: ActionArray = action.numpy()
        return actions


def make_player(policy: Policy, num_envs: int, device: torch.device) -> Player:
    """Return the fastest player of a policy for `num_envs` environments."""
    if isinstance(policy, ActorCritic) and device.type == "cpu" and is_fusable(policy):
        return FusedPlayer(policy, num_envs)
    return ModulePlayer(policy, num_envs, device)
