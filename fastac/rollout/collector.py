"""The hot loop: act, step, write, T times, into one preallocated rollout."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Generator, Tensor

from fastac.contract import EnvFailure, ObsArray, Phases, Policy, StateTree, VecEnv, read_tensor
from fastac.rollout.buffer import Rollout


class Collector:
    """Fills a rollout from environments and a policy; carries observation and memory across rollouts.

    Attributes:
        rollout: the storage, overwritten by every `collect`.
    """

    def __init__(
        self, envs: VecEnv, policy: Policy, rollout: Rollout, generator: Generator, device: torch.device
    ) -> None:
        """Take ownership of the rollout; `generator` (CPU) drives the actions."""
        self.envs, self.policy, self.rollout = envs, policy, rollout
        self._generator, self._device = generator, device
        self._rows = rollout.step_rows()
        self._action = rollout.action.numpy()
        self._value, self._log_prob = rollout.value.numpy(), rollout.log_prob.numpy()
        self._terminated, self._truncated = rollout.terminated.numpy(), rollout.truncated.numpy()
        self._state = policy.initial_state(rollout.num_envs)  # [N, S]
        self._last = 0  # the row that the next rollout begins from
        self._fresh = True

    def collect(self, phases: Phases) -> Rollout:
        """Take `num_steps` steps in every env, going on where the last rollout ended.

        Raises:
            EnvFailure: an environment failed; the message tells the row.
        """
        self._begin()
        noise = self.policy.draw_noise((self.rollout.num_steps, self.rollout.num_envs), self._generator)
        for t in range(self.rollout.num_steps):
            self._step(t, noise, phases)
        return self._end(self.rollout.num_steps, phases)

    def collect_episodes(self, phases: Phases) -> Rollout:
        """Take one whole episode in every env, from a reset; what follows an episode is not valid.

        Episodes longer than `num_steps` are cut there and bootstrap from the value of what follows.
        """
        self.restart_episodes()
        self._begin()
        noise = self.policy.draw_noise((self.rollout.num_steps, self.rollout.num_envs), self._generator)
        finished = np.zeros(self.rollout.num_envs, dtype=np.bool_)
        for t, row in enumerate(self._rows):
            self._step(t, noise, phases)
            for rows in (row.valid, row.reward, row.terminated, row.truncated):
                rows[finished] = 0
            finished |= row.terminated | row.truncated
            if finished.all():
                break
        return self._end(t + 1, phases)

    def _begin(self) -> None:
        """Fill row 0: reset, or carry over the row that the last rollout ended with."""
        rollout = self.rollout
        if self._fresh:
            self.envs.reset(rollout.obs[0].numpy(), rollout.start[0].numpy())
            self._state = self.policy.initial_state(rollout.num_envs)
            self._fresh = False
        else:
            rollout.obs[0] = rollout.obs[self._last]
            rollout.start[0] = rollout.start[self._last]
        rollout.state.copy_(self._state)
        rollout.final_value.zero_()
        rollout.out_of_band.zero_()

    def _step(self, t: int, noise: Tensor, phases: Phases) -> None:
        before = perf_counter()
        obs, start = self._look(t)
        act = self.policy.act(obs, self._state, start, noise[t].to(self._device))
        self._action[t] = act.action.cpu().numpy()
        self._value[t] = act.value.cpu().numpy()
        self._log_prob[t] = act.log_prob.cpu().numpy()
        self._state = act.state
        between = perf_counter()
        final_obs = self.envs.step(self._action[t], self._rows[t])
        after = perf_counter()
        phases.act_s += between - before
        phases.env_s += after - between
        if final_obs is not None:
            self._bootstrap(t, final_obs)

    def _end(self, num_steps: int, phases: Phases) -> Rollout:
        """Value the row after the last step, without committing to an action there."""
        before = perf_counter()
        obs, start = self._look(num_steps)
        self._value[num_steps] = self.policy.value(obs, self._state, start).cpu().numpy()
        self._last = num_steps
        phases.act_s += perf_counter() - before
        return self.rollout.first(num_steps)

    def _look(self, t: int) -> tuple[Tensor, Tensor]:
        return self.rollout.obs[t].to(self._device), self.rollout.start[t].to(self._device)

    def _bootstrap(self, t: int, final_obs: ObsArray) -> None:
        """Value final observations that came out of band, where an episode was cut and not over."""
        cut = self._truncated[t] & ~self._terminated[t]  # [N]
        if not cut.any():
            return
        broken = cut & ~np.isfinite(final_obs).reshape(len(cut), -1).all(axis=1)
        if broken.any():
            raise EnvFailure(f"env {np.flatnonzero(broken)[0]} returned a final observation that is not finite")
        obs = torch.from_numpy(final_obs.astype(np.float32)).to(self._device)
        going_on = torch.zeros(len(cut), dtype=torch.bool, device=self._device)
        value = self.policy.value(obs, self._state, going_on).cpu()  # [N]
        mask = torch.from_numpy(cut)
        self.rollout.final_value[t] = torch.where(mask, value, 0.0)
        self.rollout.out_of_band[t] = mask

    def get_state(self) -> StateTree:
        """Where collection stands: the next row's observation, start and memory, and the action stream."""
        return {
            "obs": self.rollout.obs[self._last].clone(),
            "start": self.rollout.start[self._last].clone(),
            "state": self._state.clone(),
            "generator": self._generator.get_state(),
        }

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`; the environments are restored apart."""
        self._last = 0
        self.rollout.obs[0] = read_tensor(state, "obs")
        self.rollout.start[0] = read_tensor(state, "start")
        self._state = read_tensor(state, "state").to(self._device)
        self._generator.set_state(read_tensor(state, "generator"))
        self._fresh = False

    def restart_episodes(self) -> None:
        """Begin every env's next rollout from a reset."""
        self._fresh = True
