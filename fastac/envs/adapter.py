"""Adapts any Gymnasium vector environment to the step contract, with one small class per autoreset mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from gymnasium.vector import AutoresetMode

from fastac.contract import ActionArray, BoolArray, EnvFailure, Extras, ObsArray, StateTree, StepRow, read_array
from fastac.envs.cautions import ignores_seeds
from fastac.envs.failure import check_obs, make_failure
from fastac.envs.flatten import FlattenedBatch
from fastac.envs.infos import ENVPOOLS, NOTHING, InfoReader
from fastac.envs.limits import find_time_limit
from fastac.envs.seeds import draw_batch_seed
from fastac.envs.spaces import SquashedBox, map_actions, space_dtype
from fastac.envs.state import BatchedEnv, capture, read_seeded, restore, subtree

_WHO = "the vector env"  # used in messages; environments have no index here


class VectorAdapter(ABC):
    """Base class of the three autoreset adapters; a `VecEnv`."""

    frame_skip: int = 1
    frame_stack: int = 1

    def __init__(
        self,
        env: BatchedEnv,
        seed: int,
        description: str,
        squashes: bool = False,
        cautions: tuple[str, ...] = (),
        first_obs: ObsArray | None = None,
    ) -> None:
        """Wrap `env`; see `wrap`."""
        self.num_envs = env.num_envs
        self.max_episode_steps = find_time_limit(env)
        self.single_observation_space = env.single_observation_space
        self.single_action_space = SquashedBox(env.single_action_space) if squashes else env.single_action_space
        self.description, self.cautions = description, cautions
        self._env = env
        self._seed: int | None = seed
        self._first_obs = first_obs
        self._takes_seed = not ignores_seeds(env)  # EnvPool warns of a seed
        self._name = type(env.unwrapped).__name__
        self._to_env = map_actions(self.single_action_space)
        self._flat_shapes = ((env.num_envs,),) * 3
        self._obs_shape = (env.num_envs, *(env.single_observation_space.shape or ()))
        self._done: BoolArray = np.zeros(env.num_envs, dtype=np.bool_)  # [N], ended in the previous step
        self.extras: Extras = NOTHING
        self._infos = InfoReader(env.num_envs, frozenset() if self._takes_seed else ENVPOOLS)

    @property
    def batch(self) -> BatchedEnv:
        """The vector environment without flattening of its observations."""
        return self._env.env if isinstance(self._env, FlattenedBatch) else self._env

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin an episode in every environment."""
        obs[...] = self._reset_env(None)
        start.fill(True)
        self._done.fill(False)

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Seed the next reset."""
        self._first_obs = None
        self._seed = draw_batch_seed(seed, self.num_envs)

    def rest(self, mask: BoolArray) -> None:  # noqa: B027, no-op on purpose
        """Do nothing: a batch steps all its environments."""

    @abstractmethod
    def step(self, action: ActionArray, row: StepRow) -> ObsArray | None:
        """Step all environments and write `row`; see `VecEnv.step`."""

    def get_state(self) -> StateTree | None:
        """Return the states of the environment and the adapter, or None if they cannot be captured."""
        env = capture(self._env)
        return None if env is None else {"seeded": self._seed is None, "done": self._done.copy(), "env": env}

    def set_state(self, state: StateTree) -> None:
        """Continue from a `get_state` of the same environment."""
        env, done = subtree(state, "env"), read_array(state, "done", self._done)
        restore(self._env, env)
        self._first_obs = None
        self._done[...] = done
        if read_seeded(state):
            self._seed = None

    def close(self) -> None:
        """Close the environment; Gymnasium's close is safe to call twice."""
        self._env.close()

    def _reset_env(self, mask: BoolArray | None) -> ObsArray:
        if self._first_obs is not None:
            obs, self._first_obs, self._seed = self._first_obs, None, None
            return check_obs(obs, self._obs_shape, self.single_observation_space, _WHO)
        options = None if mask is None else {"reset_mask": mask.copy()}  # Gymnasium removes the key from the dict
        try:
            obs, _ = self._env.reset(seed=self._seed if self._takes_seed else None, options=options)
        except Exception as error:
            raise make_failure(error, f"{_WHO} ({self._name})", "in reset") from error
        self._seed = None
        return check_obs(obs, self._obs_shape, self.single_observation_space, _WHO)

    def _step_env(self, action: ActionArray, row: StepRow) -> tuple[ObsArray, Mapping[str, object]]:
        """Step, check shapes, and write reward and flags: reward 0 and flags False where not valid."""
        try:
            obs, reward, terminated, truncated, infos = self._env.step(self._to_env(action))
            shapes = (reward.shape, terminated.shape, truncated.shape)
        except Exception as error:
            raise make_failure(error, f"{_WHO} ({self._name})", "in step") from error
        if shapes != self._flat_shapes:
            raise EnvFailure(
                f"{_WHO} returned reward, terminated and truncated of shapes {shapes}, expected {self._flat_shapes}."
            )
        np.multiply(reward, row.valid, out=row.reward)
        np.logical_and(terminated, row.valid, out=row.terminated)
        np.logical_and(truncated, row.valid, out=row.truncated)
        return check_obs(obs, self._obs_shape, self.single_observation_space, _WHO), infos


class NextStepAdapter(VectorAdapter):
    """NEXT_STEP, the native mode: the step after an end ignores its action and returns the reset observation."""

    def step(self, action: ActionArray, row: StepRow) -> None:
        """Step; after the end of an episode, the observation is already the final one."""
        row.start[...] = self._done  # half the cost of np.copyto
        np.logical_not(self._done, out=row.valid)
        obs, infos = self._step_env(action, row)
        row.obs[...] = obs
        np.logical_or(row.terminated, row.truncated, out=self._done)
        self.extras = self._infos.read_batch(infos, self._done) if infos and self._done.any() else NOTHING


class OutOfBandAdapter(VectorAdapter):
    """No reset-only rows: step returns the reset observation and, separately, the final one."""

    @cached_property
    def _final(self) -> ObsArray:
        """Final observations `[N, *obs_shape]`, in memory that each `step` overwrites."""
        return np.zeros(self._obs_shape, space_dtype(self.single_observation_space))

    def step(self, action: ActionArray, row: StepRow) -> ObsArray | None:
        """Step; return the final observations if any episode ended."""
        row.valid.fill(True)
        obs, infos = self._step_env(action, row)
        np.logical_or(row.terminated, row.truncated, out=self._done)
        row.start[...] = self._done
        if not self._done.any():
            row.obs[...], self.extras = obs, NOTHING
            return None
        self.extras = self._infos.read_batch(infos, self._done) if infos else NOTHING
        self._final[...] = obs
        self._end_episodes(obs, infos, row)
        return self._final

    @abstractmethod
    def _end_episodes(self, obs: ObsArray, infos: Mapping[str, object], row: StepRow) -> None:
        """Write the reset observations to `row.obs` and the final ones to `_final`, which already holds `obs`."""


class SameStepAdapter(OutOfBandAdapter):
    """SAME_STEP: the step that ends an episode returns the reset observation; the final one is in `infos`."""

    def _end_episodes(self, obs: ObsArray, infos: Mapping[str, object], row: StepRow) -> None:
        row.obs[...] = obs
        finals = infos.get("final_obs")  # [N, *obs_shape], or [N] of arrays and None
        present = infos.get("_final_obs", self._done)  # [N]
        for index in np.flatnonzero(self._done):
            final = finals[index] if isinstance(finals, np.ndarray) and np.asarray(present)[index] else None
            if final is None:
                raise EnvFailure(
                    f"{_WHO} ({self._name}) resets in the same step but gave no infos['final_obs'] for env {index}, "
                    "which was just done: build it with autoreset_mode=AutoresetMode.NEXT_STEP."
                )
            self._final[index] = check_obs(final, self._obs_shape[1:], self.single_observation_space, f"env {index}")


class DisabledAdapter(OutOfBandAdapter):
    """DISABLED: `step` returns the final observation, and this adapter resets the ended environments."""

    def _end_episodes(self, obs: ObsArray, infos: Mapping[str, object], row: StepRow) -> None:
        row.obs[...] = self._reset_env(self._done)
        going_on = ~self._done
        if not np.array_equal(row.obs[going_on], self._final[going_on], equal_nan=self._final.dtype.kind == "f"):
            raise EnvFailure(
                f"{self._name} resets all environments when asked to reset some: it must keep to "
                "options['reset_mask'], or be built with autoreset_mode=AutoresetMode.NEXT_STEP."
            )


_ADAPTERS: dict[AutoresetMode, type[NextStepAdapter | SameStepAdapter | DisabledAdapter]] = {
    AutoresetMode.NEXT_STEP: NextStepAdapter,
    AutoresetMode.SAME_STEP: SameStepAdapter,
    AutoresetMode.DISABLED: DisabledAdapter,
}


def wrap(
    env: BatchedEnv,
    seed: int,
    description: str,
    squashes: bool = False,
    cautions: tuple[str, ...] = (),
    first_obs: ObsArray | None = None,
) -> VectorAdapter:
    """Return the adapter of the environment's autoreset mode.

    Args:
        env: closed by the adapter.
        seed: for the first reset.
        description: for the log.
        squashes: squash actions into the action space, instead of clipping them.
        cautions: warnings for the log.
        first_obs: what the first reset with `seed` returned, if it was made already.

    Raises:
        ValueError: the environment does not declare its mode, or `squashes` and its actions cannot be squashed.
    """
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(
            f"{type(env.unwrapped).__name__}.metadata['autoreset_mode'] is {mode!r}, expected a "
            "gymnasium.vector.AutoresetMode: without it nobody can tell which observations are final."
        )
    return _ADAPTERS[mode](env, seed, description, squashes, cautions, first_obs)
