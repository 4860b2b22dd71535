"""Environments with Dict observations: images, vectors, categories, texts, and a key that only a critic may need."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Text

from fastac.contract import StateTree

SIDE = 4


class Signs(gym.Env):
    """One step: the action's three bits are a corner of an image, a number's sign and a category; each pays a third.

    `secret` shows what the reward is multiplied by, which no action changes: 0 or 1.
    """

    observation_space = Dict(
        mission=Text(9),
        image=Box(0, 255, (SIDE, SIDE, 3), np.uint8),
        number=Box(-1000.0, 1000.0, (1,), np.float32),
        kind=Discrete(2),
        nested=Dict(secret=Discrete(2)),
    )
    action_space = gym.spaces.MultiBinary(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.drawn = self.np_random.integers(0, 2, 4)
        return self._show(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        reward = float(self.drawn[3] * np.mean(action == self.drawn[:3]))
        return self._show(), reward, True, False, {}

    def _show(self) -> dict:
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[0, 0] = 255 * self.drawn[0]
        number = np.array([100.0 * self.drawn[1] - 50.0], np.float32)
        nested = {"secret": self.drawn[3]}
        return {"mission": "go", "image": image, "number": number, "kind": self.drawn[2], "nested": nested}

    def get_state(self) -> StateTree:
        return {"drawn": getattr(self, "drawn", np.zeros(4, np.int64)).copy()}

    def set_state(self, state: StateTree) -> None:
        self.drawn = np.array(state["drawn"])


class Bytes(Signs):
    """Without the number: everything fits in bytes."""

    observation_space = Dict({key: part for key, part in Signs.observation_space.items() if key != "number"})

    def _show(self) -> dict:
        return {key: part for key, part in super()._show().items() if key != "number"}
