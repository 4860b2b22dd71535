"""Compiled environments as a Gymnasium vector environment, for any code that takes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from fastac.contract import ActionArray, BoolArray, ObsArray, StateTree
from fastac.envs.compiled.declaration import CompiledEnv

Array: TypeAlias = NDArray[np.generic]  # of rewards, or of flags

_WORDS = 2**63


class CompiledVectorEnv(VectorEnv[ObsArray, ActionArray, Array]):
    """N compiled environments, in NEXT_STEP mode: the step after the end of an episode only resets.

    Actions are those of the space; actions of a Box are not clipped. Observations, rewards and flags are new arrays in
    every step. Environment i of `reset(seed=s)` has seed s + i, and `reset(seed=[...])` gives each its own.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012, Gymnasium's attribute

    def __init__(
        self,
        env: CompiledEnv,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        name: str = "the compiled environment",
    ) -> None:
        """Compile the environment, or load it from the disk cache.

        Args:
            env: the environment.
            num_envs: N.
            max_episode_steps: another time limit than the declared one.
            name: of the environment, for messages.

        Raises:
            ValueError: the environment cannot be compiled.
        """
        from fastac.envs.compiled.batch import Actions, Batch  # imports Numba and the kernels

        if max_episode_steps is not None:
            env = replace(env, max_episode_steps=max_episode_steps)
        self.env, self.num_envs, self.max_episode_steps = env, num_envs, env.max_episode_steps
        self.name = name
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self.render_mode = None
        self._batch = Batch(env, num_envs, name, Actions())
        self._action, self._row = self._batch.make_actions(), self._batch.make_row()
        self._step = self._batch.prepare_step(self._action, self._row)
        self._is_seeded = self._has_begun = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsArray, dict[str, Any]]:
        """Begin an episode in all environments, or in those of the boolean array `options["reset_mask"]` `[N]`.

        Raises:
            ValueError: as many seeds as there are environments were expected, or such a mask.
            EnvFailure: a function of the environment raised.
        """
        mask = _read_mask((options or {}).get("reset_mask"), self.num_envs)
        if mask is not None and not self._has_begun:
            raise ValueError("reset_mask was given to the first reset, expected none: reset all environments first.")
        self._seed(seed, mask)
        self._batch.reset(self._row.obs, self._row.start, mask)
        self._has_begun = True
        return self._row.obs.copy(), {}

    def step(self, actions: ActionArray) -> tuple[ObsArray, Array, Array, Array, dict[str, Any]]:
        """Step all environments with `actions` `[N]` or `[N, A]`, and reset those that ended in the step before.

        Raises:
            ValueError: no reset yet, or actions of another shape or outside of a Discrete space.
            EnvFailure: a function of the environment raised.
        """
        if not self._has_begun:
            raise ValueError("the environments have not been reset: call reset before step.")
        self._action[...] = self._check_actions(np.asarray(actions))
        self._step()
        self._batch.check()
        row = self._row
        return row.obs.copy(), row.reward.copy(), row.terminated.copy(), row.truncated.copy(), {}

    def get_state(self) -> StateTree:
        """Return the states of the environments and of their random streams."""
        return {"seeded": self._is_seeded, "begun": self._has_begun, "compiled": self._batch.get_state()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`.

        Raises:
            ValueError: the state is of another kind of environment.
        """
        batch = state.get("compiled")
        if not isinstance(batch, dict):
            raise ValueError("the saved environment state has no part 'compiled': it is of another kind.")
        self._batch.set_state(batch)
        self._is_seeded, self._has_begun = bool(state.get("seeded")), bool(state.get("begun"))

    def _seed(self, seed: int | Sequence[int | None] | None, mask: BoolArray | None) -> None:
        """Seed the streams; the first time without a seed, with random ones."""
        if seed is None and self._is_seeded:
            return
        given = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        if given is not None and len(given) != self.num_envs:
            raise ValueError(f"seed has {len(given)} numbers, expected one for each of {self.num_envs} environments.")
        super().reset(seed=next((s for s in given or () if s is not None), None))
        drawn = self.np_random.integers(_WORDS, size=self.num_envs).tolist()
        seeds = [new if old is None else old for old, new in zip(given or drawn, drawn, strict=True)]
        keeps = np.array([self._is_seeded and old is None for old in given or drawn])
        chosen = ~keeps if mask is None else mask & ~keeps
        self._batch.seed(np.array([s % 2**64 for s in seeds], np.uint64), None if not self._is_seeded else chosen)
        self._is_seeded = True

    def _check_actions(self, actions: NDArray[np.generic]) -> NDArray[np.generic]:
        space = self.single_action_space
        if actions.shape != self._action.shape:
            raise ValueError(f"actions have the shape {actions.shape}, expected {self._action.shape}.")
        if isinstance(space, Discrete):
            first, last = int(space.start), int(space.start + space.n - 1)
            if actions.dtype.kind not in "iu" or actions.min() < first or actions.max() > last:
                raise ValueError(f"actions are {actions!r:.80}, expected whole numbers from {first} to {last}.")
        return actions


def _read_mask(mask: object, num_envs: int) -> BoolArray | None:
    if mask is None:
        return None
    if not isinstance(mask, np.ndarray) or mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(f"reset_mask is {mask!r:.80}, expected a boolean array of {num_envs} with at least one True.")
    return mask
