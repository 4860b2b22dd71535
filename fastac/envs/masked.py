"""CartPole without velocities, which only a recurrent policy can balance; importing this module registers it.

Its id is `fastac/MaskedCartPole-v1`, and with this module `fastac.envs.masked:fastac/MaskedCartPole-v1`. A single
observation does not show where the cart moves or where the pole falls, and a policy without recurrence cannot damp a
motion that it cannot see.
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

_SHOWN = [0, 2]  # indices in (position, velocity, angle, angular velocity)


class MaskedCartPole(gym.ObservationWrapper[Obs, np.int64, Obs]):
    """Observations `[2]` of CartPole: the cart's position in metres and the pole's angle in radians."""

    def __init__(self, env: gym.Env[Obs, np.int64]) -> None:
        """Wrap a CartPole."""
        super().__init__(env)
        full = env.observation_space
        assert isinstance(full, Box)
        self.observation_space = Box(full.low[_SHOWN], full.high[_SHOWN], dtype=np.float32)

    def observation(self, observation: Obs) -> Obs:
        """Remove the velocities from `[4]`."""
        return observation[_SHOWN]

    def get_state(self) -> StateTree:
        """Return an empty state: this layer adds no state to CartPole's, so runs can be resumed."""
        return {}

    def set_state(self, state: StateTree) -> None:
        """Do nothing: this layer has no state."""


gym.register(
    id="fastac/MaskedCartPole-v1",
    entry_point=gym.spec("CartPole-v1").entry_point,
    max_episode_steps=500,
    additional_wrappers=(WrapperSpec("masked", f"{__name__}:{MaskedCartPole.__name__}", {}),),
)
