"""A random walk whose values are known; importing this module registers it.

Its id is `fastac.envs.compiled.random_walk:fastac/RandomWalk-v0`. The walk x has normal steps, no end and the reward x,
so its value is x / (1 - gamma) whatever the policy. The TD errors of the exact critic are independent: the step times
gamma / (1 - gamma).
"""

from __future__ import annotations

import math

import numpy as np
from gymnasium.spaces import Box, Discrete

from fastac.envs.compiled.declaration import CompiledEnv, Floats, State
from fastac.envs.compiled.registry import register


def random_walk() -> CompiledEnv:
    """Return the walk; the state is x, which begins at 0."""
    places = Box(-np.inf, np.inf, (1,), np.float32)
    return CompiledEnv(_reset, _step, _observe, 1, places, Discrete(1), step_draws=2)


def _reset(draws: State, state: State) -> None:
    state[0] = 0.0


def _step(state: State, action: int, draws: State) -> tuple[float, bool]:
    reward = state[0]
    # G. E. P. Box and M. E. Muller, "A note on the generation of random normal deviates", 1958
    state[0] += math.sqrt(-2.0 * math.log(1.0 - draws[0])) * math.cos(2.0 * math.pi * draws[1])
    return reward, False


def _observe(state: State, out: Floats) -> None:
    out[0] = state[0]


register("fastac/RandomWalk-v0", random_walk)
