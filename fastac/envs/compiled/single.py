"""One environment of a declaration in plain Python: for any Gymnasium code, and for a debugger."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete, Space
from numpy.typing import NDArray

from fastac.contract import StateTree, read_array
from fastac.envs.compiled.declaration import CompiledEnv, plain

Obs: TypeAlias = NDArray[np.float32]
Action: TypeAlias = np.int64 | NDArray[np.float32]


class PlainEnv(gym.Env[Obs, Action]):
    """A declaration's functions, called in plain Python; the readable twin of the compiled batch.

    Random numbers come from `np_random`, so episodes differ from those of the batch. It has no time limit of its own:
    `gymnasium.make` adds it.
    """

    metadata = {"render_modes": []}  # noqa: RUF012, Gymnasium's own attribute

    def __init__(self, env: CompiledEnv) -> None:
        """Take the declaration."""
        self.env = env
        self.observation_space = cast("Space[Obs]", env.observation_space)
        self.action_space = cast("Space[Action]", env.action_space)
        self._reset, self._step, self._observe = plain(env.reset), plain(env.step), plain(env.observe)
        self.state: NDArray[np.float64] = np.zeros(env.state_size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._reset(self.np_random.random(self.env.reset_draws), self.state)
        return self._show(), {}

    def step(self, action: Action) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Step with an action of the space.

        Raises:
            ValueError: an action outside of a Discrete space.
        """
        if isinstance(self.action_space, Discrete) and not self.action_space.contains(action):
            raise ValueError(f"the action is {action!r}, expected one of {self.action_space}.")
        draws = (self.np_random.random(self.env.step_draws),) if self.env.step_draws else ()
        given = int(action) if isinstance(self.action_space, Discrete) else np.asarray(action, np.float32)
        reward, terminated = self._step(self.state, given, *draws)
        return self._show(), float(reward), bool(terminated), False, {}

    def get_state(self) -> StateTree:
        """Return the state; that of `np_random` is saved separately."""
        return {"state": self.state.copy()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self.state[...] = read_array(state, "state", self.state)

    def _show(self) -> Obs:
        out = np.zeros(self.env.obs_size, np.float32)
        self._observe(self.state, out)
        return out
