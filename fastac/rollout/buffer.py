"""The rollout: all tensors of T steps in N envs, allocated once and written in place.

Environments write through numpy views of the tensors: a torch write would increase autograd's version
counters, and at these sizes a numpy copy costs less than a torch call.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastac import memory
from fastac.contract import EnvFailure, StepRow
from fastac.rollout.observations import Observations, Rows, Stacks


@dataclass(slots=True)
class Rollout:
    """T steps of N envs under the time contract (see `fastac.contract`).

    Attributes:
        observations: T+1 rows, raw.
        start: `[T+1, N]` bool.
        state: `[N, S]`, the recurrent state before row 0.
        action: `[T, N, *action_shape]`, int64 or float32, unclipped.
        log_prob: `[T, N]`, under the policy that collected the rollout.
        value: `[T+1, N]`, under the policy that collected the rollout.
        reward: `[T, N]`, raw.
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        valid: `[T, N]` bool.
        life_lost: `[T, N]` bool: terminated only because a life was lost.
        final_value: `[T, N]`: V(final observation) at truncated rows whose final observation was returned
            separately, else 0. All zeros under NEXT_STEP, where value[t+1] holds it.
        out_of_band: `[T, N]` bool: the rows that bootstrap from `final_value`.
        advantage: `[T, N]`, filled by the learner.
        return_: `[T, N]`, filled by the learner.
    """

    observations: Observations
    start: Tensor
    state: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    life_lost: Tensor
    final_value: Tensor
    out_of_band: Tensor
    advantage: Tensor
    return_: Tensor

    @classmethod
    def allocate(
        cls,
        num_steps: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        action_dtype: torch.dtype,
        state_size: int,
        pin: bool = False,
        obs_dtype: torch.dtype = torch.float32,
        frame_stack: int = 1,
    ) -> Rollout:
        """Allocate zeros on the CPU, in pinned memory if copies go to a CUDA device.

        With `frame_stack` S > 1, `obs_shape` is the shape of a frame, and an observation is a stack of S frames.
        """
        rows, rows_and_next = (num_steps, num_envs), (num_steps + 1, num_envs)
        zeros = partial(torch.zeros, pin_memory=pin)
        start = zeros(rows_and_next, dtype=torch.bool)
        # Only observations are inputs of the matrix library, so only they need alignment.
        obs = memory.zeros((frame_stack - 1 + num_steps + 1, num_envs, *obs_shape), obs_dtype, pin=pin)
        return cls(
            observations=Rows(obs) if frame_stack == 1 else Stacks(obs, start, frame_stack),
            start=start,
            state=zeros(num_envs, state_size),
            action=zeros(*rows, *action_shape, dtype=action_dtype),
            log_prob=zeros(rows),
            value=zeros(rows_and_next),
            reward=zeros(rows),
            terminated=zeros(rows, dtype=torch.bool),
            truncated=zeros(rows, dtype=torch.bool),
            valid=zeros(rows, dtype=torch.bool),
            life_lost=zeros(rows, dtype=torch.bool),
            final_value=zeros(rows),
            out_of_band=zeros(rows, dtype=torch.bool),
            advantage=zeros(rows),
            return_=zeros(rows),
        )

    @property
    def obs(self) -> Tensor:
        """`[T+1, N, *row_shape]`: observations, or the frames of their stacks."""
        return self.observations.rows

    def observation(self, t: int) -> Tensor:
        """Return the observations `[N, *obs_shape]` of row t, valid until the next call; t counts up from 0."""
        return self.observations.at(t)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.reward.shape[0]

    @property
    def num_envs(self) -> int:
        """N."""
        return self.reward.shape[1]

    @property
    def done(self) -> Tensor:
        """`[T, N]` bool: terminated or truncated."""
        return self.terminated | self.truncated

    @property
    def nbytes(self) -> int:
        """Memory of all tensors in bytes."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def first(self, num_steps: int) -> Rollout:
        """View the first `num_steps` rows as a rollout, without copying."""
        if num_steps == self.num_steps:
            return self
        whole = {"observations": self.observations.first(num_steps), "state": self.state}
        cut = {f.name: getattr(self, f.name)[:num_steps] for f in fields(self) if f.name not in whole}
        extra = {name: getattr(self, name)[: num_steps + 1] for name in ("start", "value")}
        return replace(self, **(cut | extra | whole))

    def step_rows(self) -> list[StepRow]:
        """Make the numpy views that each step writes; called once."""
        obs, start = self.obs.numpy(), self.start.numpy()
        reward, valid = self.reward.numpy(), self.valid.numpy()
        terminated, truncated, life_lost = self.terminated.numpy(), self.truncated.numpy(), self.life_lost.numpy()
        return [
            StepRow(obs[t + 1], start[t + 1], reward[t], terminated[t], truncated[t], valid[t], life_lost[t])
            for t in range(self.num_steps)
        ]

    def check_finite(self) -> None:
        """Raise EnvFailure with env and row if an observation or reward is NaN or infinite.

        `EpisodeCounter` looks for such numbers once per rollout and not per step, and calls this if it found one:
        actions sampled from a NaN are discarded with the run.
        """
        for name, rows in (("an observation", self.obs), ("a reward", self.reward)):
            bad = np.argwhere(~np.isfinite(rows.numpy()))
            if len(bad):
                t, n = int(bad[0][0]), int(bad[0][1])
                raise EnvFailure(f"env {n} returned {name} that is not finite in row {t} of the rollout")
