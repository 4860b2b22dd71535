"""Environments in which an illegal action raises; their masks are told in the three ways that there are."""

from __future__ import annotations

from typing import Literal

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space
from numpy.typing import NDArray

from fastac.contract import StateTree
from fastac.envs.masks import count_choices

Told = Literal["observation", "info", "method"]
ACTIONS = {"discrete": Discrete(5, start=2), "several": MultiDiscrete([3, 4]), "bits": MultiBinary(3)}


class Masked(gym.Env):
    """Four steps; each component has a few legal values, which the observation does not show, and the last pays most.

    The mask is a new one in every step, and allows nothing after the last.

    Args:
        told: where the mask is.
        kind: of actions.
        length: steps per episode.
    """

    told: Told = "info"

    def __init__(self, told: Told | None = None, kind: str = "discrete", length: int = 4) -> None:
        self.told = told or self.told
        self.length = length
        self.action_space = ACTIONS[kind]
        self.choices = count_choices(self.action_space)
        self.start = int(getattr(self.action_space, "start", 0)) if kind == "discrete" else 0
        seen: Space = Box(-1.0, 1.0, (2,), np.float32)
        size = sum(self.choices)
        if self.told == "observation":
            seen = Dict(action_mask=Box(0, 1, (size,), np.int8), zest=Discrete(3), state=seen)
        elif self.told == "method":
            self.action_masks = self._mask_now
        self.observation_space = seen
        self.mask, self.elapsed = np.zeros(size, np.int8), 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[object, dict]:
        super().reset(seed=seed)
        self.elapsed = 0
        self._draw_mask()
        return self._show()

    def step(self, action: np.ndarray) -> tuple[object, float, bool, bool, dict]:
        chosen = np.atleast_1d(action) - self.start
        at = np.cumsum((0, *self.choices[:-1])) + chosen
        if not self.mask[at].all():
            raise RuntimeError(f"illegal action {action}, mask {self.mask.tolist()}")
        best = [np.flatnonzero(part)[-1] for part in np.split(self.mask, np.cumsum(self.choices)[:-1])]
        reward = float(np.mean(chosen == best))
        self.elapsed += 1
        is_over = self.elapsed == self.length
        self._draw_mask()
        if is_over:
            self.mask[:] = 0
        obs, info = self._show()
        return obs, reward, is_over, False, info

    def _draw_mask(self) -> None:
        while True:
            self.mask = self.np_random.integers(0, 2, len(self.mask), dtype=np.int8)
            if all(part.any() for part in np.split(self.mask, np.cumsum(self.choices)[:-1])):
                return

    def _show(self) -> tuple[object, dict]:
        state = np.array([self.elapsed / self.length, -1.0], np.float32)
        if self.told == "observation":
            return {"action_mask": self.mask.copy(), "zest": self.elapsed % 3, "state": state}, {}
        return state, {"action_mask": self.mask.copy()} if self.told == "info" else {}

    def _mask_now(self) -> NDArray[np.int8]:
        return self.mask.copy()

    def get_state(self) -> StateTree:
        return {"mask": self.mask.copy(), "elapsed": self.elapsed}

    def set_state(self, state: StateTree) -> None:
        self.mask, self.elapsed = np.array(state["mask"]), int(state["elapsed"])


class MaskedByKey(Masked):
    """Told in the observation."""

    told = "observation"


class MaskedByMethod(Masked):
    """Told by `action_masks`."""

    told = "method"


class Stuck(Masked):
    """Allows nothing from the second step on."""

    def _draw_mask(self) -> None:
        super()._draw_mask()
        if getattr(self, "elapsed", 0) == 1:
            self.mask[:] = 0


class Narrow(Masked):
    """Its mask is too short."""

    def _show(self) -> tuple[object, dict]:
        obs, info = super()._show()
        return obs, {"action_mask": info["action_mask"][1:]}
