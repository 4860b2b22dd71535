"""Environments as people have them: classes, functions and batches, at the top level of a module."""

from __future__ import annotations

import multiprocessing
from typing import ClassVar

import gymnasium as gym
import numpy as np
from probes import Probe
from simulator import simulate


class Plain(Probe):
    """Episodes of five steps whose reward is its level."""

    action_space = gym.spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, level: int = 1, render_mode: str | None = None) -> None:
        self.level, self.render_mode = level, render_mode

    def first(self) -> float:
        self._left = 5
        return float(self.np_random.uniform(-1.0, 1.0))

    def step(self, action: object) -> tuple:
        self._left -= 1
        return self._show(0.5), float(self.level), self._left == 0, False, {}

    def render(self) -> np.ndarray:
        return np.zeros((16, 16, 3), np.uint8)


class Batch(gym.vector.SyncVectorEnv):
    """A batch of them, as a class."""

    def __init__(self, num_envs: int, level: int = 1) -> None:
        super().__init__([lambda: Plain(level)] * num_envs)


class Counted(Plain):
    """Knows how many of it are open in this process."""

    now = most = made = 0

    def __init__(self, level: int = 1, render_mode: str | None = None) -> None:
        super().__init__(level, render_mode)
        Counted.now, Counted.made, self._is_open = Counted.now + 1, Counted.made + 1, True
        Counted.most = max(Counted.most, Counted.now)

    def close(self) -> None:
        Counted.now -= self._is_open
        self._is_open = False


class HasProcess(Plain):
    """Runs its simulator in a process of its own."""

    def __init__(self, level: int = 1, render_mode: str | None = None) -> None:
        super().__init__(level, render_mode)
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=simulate, args=(theirs,))
        self._process.start()

    def step(self, action: object) -> tuple:
        self._pipe.send(1)
        self._pipe.recv()
        return super().step(action)

    def close(self) -> None:
        if self._process is not None:
            self._pipe.send(None)
            self._process.join()
            self._process = None


def make_one() -> gym.Env:
    return Plain()


def make_leveled(level: int) -> gym.Env:
    return Plain(level)


def make_many(num_envs: int) -> gym.vector.VectorEnv:
    return Batch(num_envs)


def make_many_leveled(n: int, level: int) -> gym.vector.VectorEnv:
    return Batch(n, level)


NOT_A_FUNCTION = 3

gym.register("Given-v0", Plain, max_episode_steps=3)
