"""A fused network on an accelerator: pinned staging buffers for inputs, captured CUDA graphs, actions copied back.

Environments and the rollout stay on the CPU. Work that repeats with the same shapes is captured once as a
CUDA graph, because at these sizes launches cost more than the computation. Activations from acting are not kept for
the update: on an accelerator one batched forward pass is cheaper than keeping track of them step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from fastac.contract import StateTree, read_tensor
from fastac.kernels import Op
from fastac.learning.fused.actor import Sampler
from fastac.learning.fused.network import Activations, BackwardPass, ForwardPass, FusedNetwork, GradientBuffers
from fastac.learning.objectives import Coefs, Objective
from fastac.rollout import Batch, Rollout

Work: TypeAlias = Callable[[], None]


def capture(work: Work, device: torch.device) -> Work:
    """Capture `work` and return its replay, after a few warm-up runs; off CUDA return `work` itself."""
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class StagedActor:
    """An `Actor` whose network is not on the rollout's device."""

    def __init__(self, network: FusedNetwork, sampler: Sampler, rollout: Rollout, generator: Generator) -> None:
        """Bind the network to the rollout, which is pinned; `generator` (CPU) samples the actions."""
        envs, device = rollout.num_envs, network.device
        self._rollout, self._sampler, self._generator = rollout, sampler, generator
        self._pass = ForwardPass(network, Activations(network, envs, pass_rows=envs), 0, envs)
        self._obs = rollout.observations.empty(envs).to(device)
        self._action, self._log_prob = (rows[0].to(device, copy=True) for rows in (rollout.action, rollout.log_prob))
        self._one_noise = sampler.draw_noise((envs,), torch.Generator()).to(device)
        self._sample = sampler.prepare(self._pass.params, self._one_noise, self._action, self._log_prob)
        self._forward = capture(self._look_and_sample, device)
        self._forward_critic = capture(lambda: self._pass.forward_critic(self._obs), device)
        self._device = device

    def _look_and_sample(self) -> None:
        self._pass.forward(self._obs)
        self._sample()

    def begin(self) -> None:
        """Draw the rollout's noise."""
        rows = (self._rollout.num_steps, self._rollout.num_envs)
        self._noise = self._sampler.draw_noise(rows, self._generator).to(self._device, non_blocking=True)

    def act(self, t: int) -> None:
        """Write row t; waits for the actions, since the environments need them."""
        rollout = self._rollout
        self._obs.copy_(rollout.observation(t), non_blocking=True)
        self._one_noise.copy_(self._noise[t])
        self._forward()
        rollout.value[t].copy_(self._pass.value, non_blocking=True)
        rollout.log_prob[t].copy_(self._log_prob, non_blocking=True)
        rollout.action[t].copy_(self._action)

    def value(self, t: int) -> None:
        """Write row t of values."""
        self._rollout.value[t].copy_(self.value_of(self._rollout.observation(t)))

    def value_of(self, obs: Tensor) -> Tensor:
        """Return the values of `obs`; the network has no recurrent state."""
        self._obs.copy_(obs, non_blocking=True)
        self._forward_critic()
        return self._pass.value.cpu()

    def forget(self) -> None:
        """Do nothing: there is no recurrent state."""

    def get_state(self) -> StateTree:
        """Return the action stream and an empty recurrent state."""
        return {"state": torch.zeros(self._rollout.num_envs, 0), "generator": self._generator.get_state()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._generator.set_state(read_tensor(state, "generator", self._generator.get_state()))


class StagedGradient:
    """A `Gradient` whose network is not on the batch's device; computes all rows in one pass."""

    def __init__(self, network: FusedNetwork, objective: Objective, batch: Batch) -> None:
        """Allocate for batches shaped like `batch`; smaller ones run without captured graphs."""
        self._network, self._objective = network, objective
        self._batch = batch.to(network.device, copy=True)
        rows = batch.valid.shape[0]
        self._activations, self._buffers = Activations(network, rows), GradientBuffers(network, rows)
        self._terms = torch.zeros(5, dtype=torch.float64, device=network.device)
        self._pass = self._make_pass(rows)
        self._forward = capture(partial(self._pass.forward, self._batch.obs), network.device)
        self._backward = capture(partial(self._pass.backward, self._batch.obs), network.device)

    def _make_pass(self, rows: int) -> BackwardPass:
        return BackwardPass(self._network, self._activations, 0, rows, self._buffers)

    @property
    def nbytes(self) -> int:
        """Device memory in bytes, without the parameters."""
        batch = sum(part.nbytes for part in self._batch.tensors)
        return batch + self._activations.nbytes + self._buffers.nbytes

    def prepare(self, batch: Batch, coefs: Coefs, terms: Tensor, is_fresh: bool) -> list[Op]:
        """See `Gradient`."""
        rows, most = batch.valid.shape[0], self._batch.valid.shape[0]
        staged = self._batch if rows == most else self._batch.rows(0, rows)
        step = self._pass if rows == most else self._make_pass(rows)
        return [
            partial(self._begin, batch, staged),
            self._forward if rows == most else partial(step.forward, staged.obs),
            self._objective.prepare(step.params, step.value, staged, coefs, step.d_params, step.d_value, self._terms),
            self._backward if rows == most else partial(step.backward, staged.obs),
            partial(terms.copy_, self._terms),
        ]

    def _begin(self, batch: Batch, staged: Batch) -> None:
        for its, copy in zip(batch.tensors, staged.tensors, strict=True):
            copy.copy_(its, non_blocking=True)
        self._terms.zero_()
        for grad in self._network.other_grads:
            grad.zero_()
