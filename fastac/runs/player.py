"""Acting outside of training: by the fused network's actor if available, else by the module itself."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor

from fastac.contract import ActionArray, Policy
from fastac.kernels import Op, Program, greedy_categorical, join_calls
from fastac.learning.fused import FusedNetwork, is_fusable
from fastac.learning.fused.network import Activations, ForwardPass
from fastac.learning.fused.recurrent import Sequences
from fastac.learning.optimizer import flatten
from fastac.models import ActorCritic, CategoricalHead, GaussianHead


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

        Returns:
            The actions, until the next call.
        """

    def prepare(self, obs: Tensor) -> tuple[Program, ActionArray] | None:
        """Return the program that takes the most likely actions, and where it writes them; None if not compiled.

        Args:
            obs: `[N, *obs_shape]`; it must not move.
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

    def prepare(self, obs: Tensor) -> None:
        """See `Player`; this needs Python."""


class FusedPlayer:
    """Plays with a fused network on the CPU: no graph, no critic, no allocations except for sampled actions."""

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
        params, self._best = self._pass.params, self._pass.params  # a Gaussian's most likely actions are its means
        self._choose: list[Op] = []
        if type(self._head) is CategoricalHead:
            self._best = torch.zeros(num_envs, dtype=torch.int64)
            self._choose = [greedy_categorical.prepare(params, self._best)]
        elif type(self._head) is not GaussianHead:
            self._best = self._head.mode(params)
            self._choose = [self._write_mode]
        self._actions: ActionArray = self._best.numpy()
        self._ops: list[Op] = []
        self._obs: int | None = None  # address of the observations that the calls read

    def begin(self) -> None:
        """Read the weights and reset the recurrent state."""
        self._network.refresh()
        self._state.zero_()

    def act(self, obs: Tensor, start: Tensor, noise: Generator | None) -> ActionArray:
        """See `Player`."""
        self._start.copy_(start)
        if noise is None:
            for op in self._prepare(obs):
                op()
            return self._actions
        self._pass.forward_actor(obs)
        with torch.no_grad():
            action = self._head.sample(self._pass.params, self._head.draw_noise((len(obs),), noise))
        actions: ActionArray = action.numpy()
        return actions

    def prepare(self, obs: Tensor) -> tuple[Program, ActionArray] | None:
        """See `Player`."""
        if self._network.cores:  # each step resets the states of environments that begin an episode
            return None
        first, *others = self._prepare(obs)
        return (first, self._actions) if isinstance(first, Program) and not others else None

    def _prepare(self, obs: Tensor) -> list[Op]:
        """Return the calls that choose the most likely actions, made anew if `obs` is in another place."""
        if self._obs != obs.data_ptr():
            self._obs, self._ops = obs.data_ptr(), join_calls([*self._pass.prepare_actor(obs), *self._choose])
        return self._ops

    @torch.no_grad()
    def _write_mode(self) -> None:
        self._best.copy_(self._head.mode(self._pass.params))


def make_player(policy: Policy, num_envs: int, device: torch.device) -> Player:
    """Return the fastest player of a policy for `num_envs` environments."""
    if isinstance(policy, ActorCritic) and device.type == "cpu" and is_fusable(policy):
        return FusedPlayer(policy, num_envs)
    return ModulePlayer(policy, num_envs, device)
