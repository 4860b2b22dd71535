"""Wrappers that make rows of observations: of one environment, or of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import FlattenObservation
from numpy.typing import NDArray

from fastac.contract import ActionArray, BoolArray, EnvFailure, ObsArray
from fastac.envs.masks import MASK_METHOD, MaskReader, ask_mask, count_choices, read_batch_info
from fastac.envs.rows import FlatBox

_Infos = dict[str, object]
_Flags = NDArray[np.generic]


def flatten_env(env: gym.Env[ObsArray, ActionArray], space: FlatBox) -> gym.Env[ObsArray, ActionArray]:
    """Wrap one environment so that it returns rows of `space`."""
    if not space.is_plain:
        return RowObservation(env, space)
    wrapped: FlattenObservation[ObsArray, ActionArray, ObsArray] = FlattenObservation(env)
    wrapped.observation_space = space
    return wrapped


def to_first_row(env: gym.Env[ObsArray, ActionArray], obs: ObsArray, info: _Infos) -> ObsArray:
    """Return what a wrapped environment's `reset` would have returned, given what the environment's own did."""
    if isinstance(env, RowObservation):
        return env.to_row(obs, info, is_over=False)
    return env.observation(obs) if isinstance(env, FlattenObservation) else obs


class RowObservation(gym.Wrapper[ObsArray, ActionArray, ObsArray, ActionArray]):
    """One environment whose observations are rows, with their mask if it has one."""

    def __init__(self, env: gym.Env[ObsArray, ActionArray], space: FlatBox) -> None:
        """Wrap `env`, whose observations are of `space.original`."""
        super().__init__(env)
        self.observation_space = self._space = space
        self._reader = MaskReader(count_choices(env.action_space)) if space.reading.mask_source else None

    def reset(self, *, seed: int | None = None, options: _Infos | None = None) -> tuple[ObsArray, _Infos]:
        """Reset, and return the row."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self.to_row(obs, info, is_over=False), info

    def step(self, action: ActionArray) -> tuple[ObsArray, SupportsFloat, bool, bool, _Infos]:
        """Step, and return the row."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self.to_row(obs, info, bool(terminated or truncated)), reward, terminated, truncated, info

    def to_row(self, obs: ObsArray, info: _Infos, is_over: bool) -> ObsArray:
        """Return the row of an observation of the environment."""
        space, source = self._space, self._space.reading.mask_source
        values = space.flatten(obs)
        if self._reader is None or source is None:
            return values
        found = space.find_mask(obs) if source == "observation" else ask_mask(self.env, info, source)
        return space.join(values, self._reader.complete(self._reader.read(found), is_over))


class FlattenedBatch(VectorWrapper[ObsArray, ActionArray, ObsArray, ActionArray, NDArray[np.generic]]):
    """A vector environment whose observations are rows, in any autoreset mode; there is no loop over envs."""

    def __init__(self, env: VectorEnv[ObsArray, ActionArray, NDArray[np.generic]], space: FlatBox) -> None:
        """Wrap `env`, whose single observations are of `space.original`."""
        super().__init__(env)
        self.single_observation_space = self._space = space
        source = space.reading.mask_source
        self._reader = MaskReader(count_choices(env.single_action_space)) if source else None
        self._mask: BoolArray = np.ones((env.num_envs, space.reading.mask_size), dtype=np.bool_)

    def reset(self, *, seed: int | None = None, options: _Infos | None = None) -> tuple[ObsArray, _Infos]:
        """Reset, and flatten to `[N, D + M]`."""
        chosen = None if options is None else options.get("reset_mask")
        anew = np.ones(self.num_envs, dtype=np.bool_) if chosen is None else np.array(chosen, dtype=np.bool_)
        obs, infos = self.env.reset(seed=seed, options=options)
        return self._to_rows(obs, infos, anew, np.zeros(self.num_envs, dtype=np.bool_)), infos

    def step(self, actions: ActionArray) -> tuple[ObsArray, _Flags, _Flags, _Flags, _Infos]:
        """Step, and flatten to `[N, D + M]`; final observations of SAME_STEP are flattened singly, as they are few."""
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        finals = infos.get("final_obs")  # [N] of observations and None
        is_over = np.asarray(terminated, dtype=np.bool_) | np.asarray(truncated, dtype=np.bool_)
        if isinstance(finals, np.ndarray):
            flat = np.full(len(finals), None, dtype=object)
            for index in np.flatnonzero(infos["_final_obs"]):
                flat[index] = self._to_final(finals[index])
            infos = {**infos, "final_obs": flat}
            is_over = np.zeros(self.num_envs, dtype=np.bool_)  # these have begun anew
        rows = self._to_rows(obs, infos, np.ones(self.num_envs, dtype=np.bool_), is_over)
        return rows, reward, terminated, truncated, infos

    def to_first_rows(self, obs: ObsArray, infos: _Infos) -> ObsArray:
        """Return what `reset` would have returned, given what that of the environment did."""
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        return self._to_rows(obs, infos, everywhere, ~everywhere)

    def _to_final(self, obs: ObsArray) -> ObsArray:
        values = self._space.flatten(obs)
        if self._reader is None:
            return values
        return self._space.join(values, np.ones(self._reader.size, dtype=np.bool_))  # nobody acts on it

    def _to_rows(self, obs: ObsArray, infos: Mapping[str, object], anew: BoolArray, is_over: BoolArray) -> ObsArray:
        """Flatten; only environments in `anew` `[N]` have another mask than before."""
        values = self._space.flatten(obs)
        if self._reader is None:
            return values
        mask = self._reader.complete(self._find_mask(obs, infos, is_over | ~anew), is_over)
        self._mask[anew] = mask[anew]
        return self._space.join(values, self._mask)

    def _find_mask(self, obs: ObsArray, infos: Mapping[str, object], may_lack: BoolArray) -> BoolArray:
        """Return the masks `[N, M]`; environments in `may_lack` `[N]` may tell none.

        Raises:
            EnvFailure: another one tells none.
        """
        assert self._reader is not None
        match self._space.reading.mask_source:
            case "observation":
                return self._reader.read(self._space.find_mask(obs), self.num_envs)
            case "method":
                return call_masks(self.env, self._reader)
            case _:
                mask, told = read_batch_info(infos, self.num_envs, self._reader)
                if not (told | may_lack).all():
                    index = np.flatnonzero(~(told | may_lack))[0]
                    raise EnvFailure(
                        f"the infos have no 'action_mask' of env {index}, expected one after every reset and step, as "
                        "after the first"
                    )
                return mask


def call_masks(env: VectorEnv[ObsArray, ActionArray, NDArray[np.generic]], reader: MaskReader) -> BoolArray:
    """Return the masks `[N, M]` that the method `action_masks` of a batch returns, or those of its environments.

    Raises:
        EnvFailure: neither has one.
    """
    own = getattr(env, MASK_METHOD, None)
    if callable(own):
        return reader.read(own(), env.num_envs)
    call = getattr(env, "call", None)
    if not callable(call):
        raise EnvFailure(f"the vector env has no method {MASK_METHOD}()")
    return np.stack([reader.read(mask) for mask in call(MASK_METHOD)])
