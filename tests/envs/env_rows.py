"""What the tests of this room share: rows to write into, and the transitions read back from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import MultiBinary
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from fastac.contract import ActionArray, StateTree, StepRow, VecEnv
from fastac.envs.spaces import action_dtype, space_dtype


class Saving(SyncVectorEnv):
    """A user's batch that can save its environments, which can save themselves."""

    def get_state(self) -> StateTree:
        ends = {"ends": self._autoreset_envs.copy()}
        return ends | {str(i): e.get_state() for i, e in enumerate(self.envs)}

    def set_state(self, state: StateTree) -> None:
        self._autoreset_envs = state["ends"].copy()
        for i, env in enumerate(self.envs):
            env.set_state(state[str(i)])


def make_row(env: VecEnv) -> StepRow:
    """Return a row full of wrong numbers, so that whatever is not written shows."""
    n, shape = env.num_envs, env.single_observation_space.shape or ()
    row_shape = shape if env.frame_stack == 1 else shape[1:]
    obs = np.full((n, *row_shape), 77, space_dtype(env.single_observation_space))
    flags = [np.ones(n, np.bool_) for _ in range(4)]
    # Only environments with lives write the last one.
    return StepRow(obs, flags[0], np.full(n, 77, np.float32), *flags[1:], np.zeros(n, np.bool_))


def begin(env: VecEnv) -> NDArray[np.generic]:
    """Reset and return the first observations."""
    row = make_row(env)
    row.start.fill(False)
    env.reset(row.obs, row.start)
    assert row.start.all()
    return row.obs


def draw_actions(env: VecEnv, num_steps: int, seed: int = 0) -> ActionArray:
    """Return random actions `[T, N, *action_shape]` as a policy would give them."""
    rng = np.random.default_rng(seed)
    shape = (num_steps, env.num_envs, *(env.single_action_space.shape or ()))
    if action_dtype(env.single_action_space) == np.float32:
        return 2.0 * rng.standard_normal(shape, dtype=np.float32)
    space = env.single_action_space
    nvec = 2 if isinstance(space, MultiBinary) else getattr(space, "nvec", getattr(space, "n", None))
    return rng.integers(0, np.asarray(nvec), shape)


@dataclass
class Trace:
    """Everything that was written in some steps, `[T, N, ...]`."""

    obs: NDArray[np.generic]
    start: NDArray[np.bool_]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    life_lost: NDArray[np.bool_]

    def assert_equal(self, other: Trace) -> None:
        """Compare bit for bit."""
        for name, value in vars(self).items():
            assert value.dtype == getattr(other, name).dtype, name
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def exit_with_parent(env: VecEnv, actions: ActionArray) -> Trace:
    """Step through `actions` and keep all rows."""
    rows = []
    for action in actions:
        row = make_row(env)
        env.step(action, row)
        rows.append(row)
    return Trace(*(np.stack([getattr(row, name) for row in rows]) for name in Trace.__dataclass_fields__))
