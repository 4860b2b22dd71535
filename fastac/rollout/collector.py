"""The hot loop: act, step and write T times into one preallocated rollout."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from fastac import memory
from fastac.contract import Actor, EnvFailure, Extras, ObsArray, Phases, StateTree, VecEnv, read_branch, read_tensor
from fastac.rollout.buffer import Rollout


class Collector:
    """Fills a rollout from environments and an actor; carries the last observation over to the next rollout.

    Attributes:
        rollout: the storage, overwritten by every `collect`.
    """

    def __init__(self, envs: VecEnv, actor: Actor, rollout: Rollout) -> None:
        """Store the parts; `actor` must be bound to `rollout`."""
        self.envs, self.rollout = envs, rollout
        self._actor = actor
        self._rows = rollout.step_rows()
        self._action = list(rollout.action.numpy())  # T views [N, ...]
        self._terminated, self._truncated = rollout.terminated.numpy(), rollout.truncated.numpy()
        self._last = 0  # the row that the next rollout starts from
        self._fresh = True
        self._extras: list[Extras] = []  # one entry per step of this rollout that ended an episode

    def collect(self, phases: Phases) -> Rollout:
        """Take `num_steps` steps in every env, continuing from the last rollout.

        Raises:
            EnvFailure: an environment failed; the message names the row.
        """
        self._begin(phases)
        for t in range(self.rollout.num_steps):
            self._step(t, phases)
        return self._end(self.rollout.num_steps, phases)

    def collect_episodes(self, phases: Phases) -> Rollout:
        """Collect one whole episode in every env, from a reset; rows after its end are not valid.

        Episodes longer than `num_steps` are cut there and bootstrap from the value of the next row.
        """
        self.restart_episodes()
        self._begin(phases)
        finished = np.zeros(self.rollout.num_envs, dtype=np.bool_)
        for t, row in enumerate(self._rows):
            self._step(t, phases)
            for values in self.envs.extras.values():
                values[finished] = np.nan
            for rows in (row.valid, row.reward, row.terminated, row.truncated, row.life_lost):
                rows[finished] = 0
            finished |= (row.terminated & ~row.life_lost) | row.truncated
            if finished.all():
                break
        return self._end(t + 1, phases)

    def take_extras(self) -> Extras:
        """Return the values that episodes have reported in `info` since the last call, ordered by time, then env."""
        if not self._extras:
            return {}
        found: dict[str, list[NDArray[np.float64]]] = {}
        for reported in self._extras:
            for key, values in reported.items():
                found.setdefault(key, []).append(values[~np.isnan(values)])
        self._extras = []
        return {key: np.concatenate(values) for key, values in found.items()}

    def _begin(self, phases: Phases) -> None:
        """Fill row 0: reset, or copy the last row of the previous rollout."""
        before = perf_counter()
        rollout = self.rollout
        if self._fresh:
            rollout.observations.forget()
            self.envs.reset(rollout.obs[0].numpy(), rollout.start[0].numpy())
            self._actor.forget()
            self._fresh = False
        else:
            rollout.observations.carry(self._last)
            rollout.start[0] = rollout.start[self._last]
        rollout.final_value.zero_()
        rollout.out_of_band.zero_()
        between = perf_counter()
        self._actor.begin()
        phases.env_s += between - before
        phases.act_s += perf_counter() - between

    def _step(self, t: int, phases: Phases) -> None:
        before = perf_counter()
        self._actor.act(t)
        between = perf_counter()
        final_obs = self.envs.step(self._action[t], self._rows[t])
        phases.act_s += between - before
        phases.env_s += perf_counter() - between
        if self.envs.extras:
            self._extras.append(self.envs.extras)
        if final_obs is not None:
            self._bootstrap(t, final_obs)

    def _end(self, num_steps: int, phases: Phases) -> Rollout:
        """Compute the value of the row after the last step, without acting there."""
        before = perf_counter()
        self._actor.value(num_steps)
        self._last = num_steps
        phases.act_s += perf_counter() - before
        return self.rollout.first(num_steps)

    def _bootstrap(self, t: int, final_obs: ObsArray) -> None:
        """Compute the values of final observations returned separately, for episodes that were truncated."""
        cut = self._truncated[t] & ~self._terminated[t]  # [N]
        if not cut.any():
            return
        broken = cut & ~np.isfinite(final_obs).reshape(len(cut), -1).all(axis=1)
        if broken.any():
            raise EnvFailure(f"env {np.flatnonzero(broken)[0]} returned a final observation that is not finite")
        value = self._actor.value_of(memory.copy_of(final_obs, self.rollout.obs.dtype))  # [N]
        mask = torch.from_numpy(cut)
        self.rollout.final_value[t] = torch.where(mask, value, 0.0)
        self.rollout.out_of_band[t] = mask

    def get_state(self) -> StateTree:
        """Return the next row's observation and start, and the actor's state."""
        return {
            **self.rollout.observations.get_state(self._last),
            "start": self.rollout.start[self._last].clone(),
            "actor": self._actor.get_state(),
        }

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`; the environments are restored separately."""
        self._last = 0
        self.rollout.observations.set_state(state)
        self.rollout.start[0] = read_tensor(state, "start", self.rollout.start[0])
        self._actor.set_state(read_branch(state, "actor"))
        self._fresh = False

    def restart_episodes(self) -> None:
        """Begin the next rollout of every env with a reset."""
        self._fresh = True
