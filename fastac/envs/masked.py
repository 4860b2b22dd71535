"""CartPole without velocities, which takes a memory to balance; importing this module registers it.

Its id is `fastac.envs.masked:fastac/MaskedCartPole-v1`. One observation tells neither where the cart goes nor where
the pole falls, and a policy without memory cannot damp what it cannot see.
"""

from __future__ import annotations

from typing import TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import WrapperSpec
from gymnasium.spaces import Box
from numpy.typing import NDArray

from fastac.contract import StateTree

Obs: TypeAlias = NDArray[np.float32]

_SHOWN = [0, 2]  # of position, velocity, angle and angular velocity


class MaskedCartPole(gym.ObservationWrapper[Obs, np.int64, Obs]):
    """Shows of CartPole `[2]`: the cart's position in metres and the pole's angle in radians."""

    def __init__(self, env: gym.Env[Obs, np.int64]) -> None:
        """Wrap a CartPole."""
        super().__init__(env)
        full = env.observation_space
        assert isinstance(full, Box)
        self.observation_space = Box(full.low[_SHOWN], full.high[_SHOWN], dtype=np.float32)

    def observation(self, observation: Obs) -> Obs:
        """Leave the velocities out of `[4]`."""
        return observation[_SHOWN]

    def get_state(self) -> StateTree:
        """Return nothing, which is what this layer adds to CartPole's state: a run can be resumed."""
        return {}

    def set_state(self, state: StateTree) -> None:
        """Do nothing, likewise."""


gym.register(
    id="fastac/MaskedCartPole-v1",
    entry_point=gym.spec("CartPole-v1").entry_point,
    max_episode_steps=500,
    additional_wrappers=(WrapperSpec("masked", f"{__name__}:{MaskedCartPole.__name__}", {}),),
)
