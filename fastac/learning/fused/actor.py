"""The actor of a fused network: one forward pass per step, whose activations are kept for the update."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor

from fastac.contract import StateTree, read_tensor
from fastac.kernels import Op, copy_row, join_calls, prepare_copy
from fastac.learning.fused.gradient import split_rows
from fastac.learning.fused.network import Activations, ForwardPass, FusedNetwork
from fastac.learning.fused.recurrent import Sequences
from fastac.rollout import Rollout


class Sampler(Protocol):
    """Samples actions from distribution parameters."""

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw the randomness that turns parameters into actions of shape `leading`."""

    def prepare(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> Op:
        """Return the call that writes actions `[N, ...]` and log-probs `[N]` for `params` `[N, P]`; none may move."""


class FusedActor:
    """An `Actor` over a fused network, on the CPU.

    Many environments act in chunks of the gradient's size, so that what a layer wrote is still in the core's own cache
    when the next one reads it.

    Attributes:
        activations: of the whole rollout `[T*N]`, or of one chunk if they are not kept.
        keep_activations: whether activations are kept for the update.
    """

    def __init__(
        self, network: FusedNetwork, sampler: Sampler, rollout: Rollout, generator: Generator, keep_activations: bool
    ) -> None:
        """Bind the network to the rollout; `generator` samples the actions."""
        steps, envs = rollout.num_steps, rollout.num_envs
        self._rollout, self._sampler, self._generator = rollout, sampler, generator
        self._network, self.keep_activations = network, keep_activations
        self._chunks = split_rows(network, envs)
        chunk = self._chunks[0].stop
        # For a step whose activations are not kept, the row after the last step, and observations outside the rollout.
        one = Activations.for_step(network, chunk)
        self.activations = Activations.kept(network, steps, envs, chunk) if keep_activations else one
        self._state = torch.zeros(rollout.state.shape)  # [N, S], before the next row
        begins = [t * envs if keep_activations else None for t in range(steps)]
        self._passes = [
            self._make_passes(self.activations, at, start, moves_on=True)
            for at, start in zip(begins, rollout.start[:steps].unbind(0), strict=True)
        ]
        self._last_start, going_on = (torch.zeros(envs, dtype=torch.bool) for _ in range(2))
        self._last, self._beside = (self._make_passes(one, None, start) for start in (self._last_start, going_on))
        self._beside_obs, self._beside_value = rollout.observations.empty(envs), torch.empty(envs)
        self._noise = sampler.draw_noise((steps, envs), torch.Generator())  # [T, N, ...]
        self._nbytes = one.nbytes + (self.activations.nbytes if keep_activations else 0)
        self._nbytes += sum(t.nbytes for t in (self._state, self._noise, self._beside_obs, self._beside_value))
        self._value = list(rollout.value)
        self._value_ops: dict[int, list[Op]] = {}  # the calls of `value`, by row
        self._ops: list[list[Op]] = [[] for _ in range(steps)]  # the calls of each row
        self._obs: list[int] = [0] * steps  # address of the observations that they read
        self._beside_ops = self._prepare_critic(self._beside, self._beside_obs, self._beside_value)

    def _make_passes(
        self, activations: Activations, begin: int | None, start: Tensor, moves_on: bool = False
    ) -> list[ForwardPass]:
        """Make a pass per chunk over activations from row `begin` on, or all over the first rows if it is None."""
        sequences = Sequences(self._state, start, moves_on) if self._network.cores else None
        passes = []
        for chunk in self._chunks:
            at, rows = 0 if begin is None else begin + chunk.start, chunk.stop - chunk.start
            passes.append(ForwardPass(self._network, activations, at, at + rows, sequences))
        return passes

    @property
    def nbytes(self) -> int:
        """Memory of the state, the activations, a rollout's noise, and observations outside the rollout."""
        return self._nbytes

    def begin(self) -> None:
        """Record the recurrent state, draw the rollout's noise, and refresh the weights for acting."""
        self.begin_program()
        for op in self._network.prepare_weights():
            op()

    def begin_program(self) -> None:
        """Do all of `begin` but refresh the weights, which a program does."""
        if self._network.cores:
            self._rollout.state.copy_(self._state)
        self._network.refresh_statistics()
        self._noise.copy_(self._sampler.draw_noise((self._rollout.num_steps, self._rollout.num_envs), self._generator))

    def act(self, t: int) -> None:
        """Write row t."""
        for op in self._prepare(t):
            op()

    def prepare_rollout(self) -> tuple[list[Op], list[list[Op]], list[Op]] | None:
        """See `CompiledActor`; None if inputs move."""
        if self._rollout.observations.size > 1:
            return None
        steps = self._rollout.num_steps
        acts, value = [self._prepare(t) for t in range(steps)], self._prepare_value(steps, self._rollout.obs[steps])
        return self._network.prepare_weights(), acts, value

    def _prepare(self, t: int) -> list[Op]:
        """Return the calls that write row t, made anew if its observations are in another place."""
        obs = self._rollout.observation(t)
        if self._obs[t] != obs.data_ptr():
            rollout, ops = self._rollout, list[Op]()
            written = self._noise[t], rollout.action[t], rollout.log_prob[t]
            for chunk, step in zip(self._chunks, self._passes[t], strict=True):
                noise, action, log_prob = (rows[chunk] for rows in written)
                ops += step.prepare(obs[chunk])
                ops.append(self._sampler.prepare(step.params, noise, action, log_prob))
                ops.append(copy_row.prepare(step.value, self._value[t][chunk]))
            self._ops[t], self._obs[t] = join_calls(ops), obs.data_ptr()
        return self._ops[t]

    def value(self, t: int) -> None:
        """Write row t of values; the recurrent state does not change."""
        obs = self._rollout.observation(t)  # this builds stacks, always in the same memory
        if t not in self._value_ops:
            self._value_ops[t] = self._prepare_value(t, obs)
        for op in self._value_ops[t]:
            op()

    def _prepare_value(self, t: int, obs: Tensor) -> list[Op]:
        start = [prepare_copy(self._rollout.start[t], self._last_start)] if self._network.cores else []
        return join_calls([*start, *self._prepare_critic(self._last, obs, self._value[t])])

    def _prepare_critic(self, passes: list[ForwardPass], obs: Tensor, value: Tensor) -> list[Op]:
        ops: list[Op] = []
        for chunk, step in zip(self._chunks, passes, strict=True):
            ops += [*step.prepare_critic(obs[chunk]), copy_row.prepare(step.value, value[chunk])]
        return ops

    def value_of(self, obs: Tensor) -> Tensor:
        """Return the values of `obs`, given the recurrent state after the last row."""
        self._beside_obs.copy_(obs)
        for op in self._beside_ops:
            op()
        return self._beside_value

    def forget(self) -> None:
        """Reset the recurrent state."""
        self._state.zero_()

    def get_state(self) -> StateTree:
        """Return the recurrent state and the action stream."""
        return {"state": self._state.clone(), "generator": self._generator.get_state()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._state.copy_(read_tensor(state, "state", self._state))
        self._generator.set_state(read_tensor(state, "generator", self._generator.get_state()))
