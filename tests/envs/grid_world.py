"""A grid world with wind, as a user writes it: what the tests of compiled environments step, break and register."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box, Discrete

from fastac.envs.compiled import CompiledEnv, register

WALLS = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=np.bool_)
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
SIZE = 4


def reset(draws, state):
    state[0], state[1] = 0.0, np.floor(SIZE * draws[0])


def step(state, action, draws):
    move = int(4 * draws[1]) if draws[0] < 0.1 else action  # wind
    row, column = int(state[0]) + MOVES[move, 0], int(state[1]) + MOVES[move, 1]
    if 0 <= row < SIZE and 0 <= column < SIZE and not WALLS[row, column]:
        state[0], state[1] = row, column
    arrived = state[0] == SIZE - 1 and state[1] == SIZE - 1
    return (1.0 if arrived else -0.125), arrived


def observe(state, out):
    out[0], out[1] = state[0] / (SIZE - 1), state[1] / (SIZE - 1)


def declare(max_episode_steps: int | None = 20) -> CompiledEnv:
    return CompiledEnv(
        reset,
        step,
        observe,
        state_size=2,
        observation_space=Box(0.0, 1.0, (2,), np.float32),
        action_space=Discrete(4),
        reset_draws=1,
        step_draws=2,
        max_episode_steps=max_episode_steps,
    )


register("tests/GridWorld-v0", declare())
