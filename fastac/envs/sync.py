"""Environments stepped one after the other in this process, in NEXT_STEP mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fastac.contract import ActionArray, BoolArray, EnvFailure, Extras, ObsArray, StateTree, StepRow, read_array
from fastac.envs.cautions import find_cautions
from fastac.envs.failure import check_obs, describe
from fastac.envs.infos import NOTHING, InfoReader
from fastac.envs.limits import find_time_limit
from fastac.envs.mistakes import blame, check_reset
from fastac.envs.seeds import draw_seeds
from fastac.envs.spaces import map_actions
from fastac.envs.state import SingleEnv, capture, read_seeded, restore, subtree


class SyncEnvs:
    """A `VecEnv` over single environments, in NEXT_STEP mode.

    Compared with Gymnasium's SyncVectorEnv, this loop writes each observation directly into the rollout, keeps no
    copies (so there is less state to save), and knows the index of an environment that fails.
    """

    frame_skip: int = 1
    frame_stack: int = 1

    def __init__(
        self,
        build: Callable[[], SingleEnv],
        seeds: Sequence[int],
        description: str,
        first_index: int = 0,
        first: SingleEnv | None = None,
        cautions: tuple[str, ...] = (),
        first_obs: ObsArray | None = None,
    ) -> None:
        """Build one environment per seed.

        Args:
            build: makes one environment.
            seeds: one per environment, for its first reset.
            description: for the log.
            first_index: index of the first environment in messages and states.
            first: an environment made by `build` and never stepped, used as the first one.
            cautions: warnings for the log, added to those found in the environments.
            first_obs: what the first reset of `first` with its seed returned, if it was made already.
        """
        self.num_envs = len(seeds)
        self.description = description
        self._seeds: Sequence[int | None] = seeds
        self._first_index, self._first_obs = first_index, first_obs
        self._names = [f"env {first_index + index}" for index in range(self.num_envs)]  # made once: steps name them
        self._done: BoolArray = np.zeros(self.num_envs, dtype=np.bool_)
        self._awake: Sequence[int] = range(self.num_envs)
        self._is_awake: BoolArray = np.ones(self.num_envs, dtype=np.bool_)
        self.extras: Extras = NOTHING
        self._infos, self._last_infos = InfoReader(self.num_envs), dict[int, object]()
        self._envs: list[SingleEnv] = []
        for index in range(self.num_envs):
            try:
                self._envs.append(first if first is not None and not self._envs else build())
            except Exception as error:
                self.close()
                raise EnvFailure(f"{self._names[index]} could not be built ({describe(error)}).") from error
        self.max_episode_steps = find_time_limit(self._envs[0])
        self.cautions = find_cautions(self._envs[0]) + cautions
        self.single_observation_space = self._envs[0].observation_space
        self.single_action_space = self._envs[0].action_space
        self._obs_shape = self.single_observation_space.shape or ()
        self._to_env = map_actions(self.single_action_space)

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin an episode in every environment."""
        for index, seed in enumerate(self._seeds):
            obs[index] = self._reset_one(index, seed)
        self._seeds = [None] * self.num_envs
        self._done.fill(False)
        self.rest(np.zeros(self.num_envs, dtype=np.bool_))
        start.fill(True)

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Seed the next reset of every environment."""
        self.take_seeds(draw_seeds(seed, self.num_envs))

    def take_seeds(self, seeds: Sequence[int]) -> None:
        """Seed the next reset with one given seed per environment."""
        self._seeds, self._first_obs = seeds, None

    def rest(self, mask: BoolArray) -> None:
        """Skip the environments in `mask`."""
        self._is_awake = ~mask
        self._awake = np.flatnonzero(self._is_awake).tolist()

    def step(self, action: ActionArray, row: StepRow) -> None:
        """Step the running environments, and reset those whose episode ended in the step before."""
        actions = self._to_env(action)  # [N, *action_shape]
        row.start[...] = self._done
        np.logical_not(self._done, out=row.valid)
        if len(self._awake) < self.num_envs:
            self._write_resting(row)
        for index in self._awake:
            if row.valid[index]:
                self._step_one(index, actions[index], row)
            else:
                row.obs[index] = self._reset_one(index, None)
                row.reward[index], row.terminated[index], row.truncated[index] = 0.0, False, False
        np.logical_or(row.terminated, row.truncated, out=self._done, where=self._is_awake)
        self.extras = self._infos.read(self._last_infos) if self._last_infos else NOTHING
        self._last_infos.clear()

    def _write_resting(self, row: StepRow) -> None:
        """Mark resting environments as not valid, with reward 0 and no flags."""
        np.logical_and(row.valid, self._is_awake, out=row.valid)
        for rows in (row.reward, row.terminated, row.truncated):
            rows[~self._is_awake] = 0

    def render(self) -> list[NDArray[np.uint8]]:
        """Return one frame per environment, for environments built with render_mode rgb_array."""
        return [np.asarray(env.render(), dtype=np.uint8) for env in self._envs]

    def get_state(self) -> StateTree | None:
        """Return the state, keyed by index, or None if the state of any environment cannot be captured."""
        envs: dict[str, StateTree] = {}
        for index, env in enumerate(self._envs, start=self._first_index):
            state = capture(env)
            if state is None:
                return None
            envs[str(index)] = state
        return {"seeded": self._seeds[0] is None, "done": self._done.copy(), "envs": envs}

    def set_state(self, state: StateTree) -> None:
        """Continue from a `get_state` of the same number of environments."""
        envs, done = subtree(state, "envs"), read_array(state, "done", self._done)
        for index, env in enumerate(self._envs, start=self._first_index):
            restore(env, subtree(envs, str(index)))
        self._done[...], self._first_obs = done, None
        if read_seeded(state):
            self._seeds = [None] * self.num_envs

    def close(self) -> None:
        """Close every environment."""
        while self._envs:
            self._envs.pop().close()

    def _reset_one(self, index: int, seed: int | None) -> ObsArray:
        if index == 0 and self._first_obs is not None:
            obs, self._first_obs = self._first_obs, None
            return check_obs(obs, self._obs_shape, self.single_observation_space, self._names[0])
        try:
            returned = self._envs[index].reset(seed=seed)
        except Exception as error:
            raise blame(error, "reset", self._envs[index], self._names[index], "in reset") from error
        obs, _ = check_reset(returned, self._names[index])
        return check_obs(obs, self._obs_shape, self.single_observation_space, self._names[index])

    def _step_one(self, index: int, action: ActionArray, row: StepRow) -> None:
        try:
            obs, reward, terminated, truncated, info = self._envs[index].step(action)
            row.terminated[index], row.truncated[index] = terminated, truncated
            number = np.asarray(reward, dtype=np.float32)
            if terminated or truncated:
                self._last_infos[index] = info
        except Exception as error:
            raise blame(error, "step", self._envs[index], self._names[index], "in step") from error
        if number.shape:
            raise EnvFailure(f"{self._names[index]} returned a reward of shape {number.shape}, expected a number.")
        row.reward[index] = number
        row.obs[index] = check_obs(obs, self._obs_shape, self.single_observation_space, self._names[index])
