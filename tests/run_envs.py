"""Environments that the tests of runs need; importing this module registers them, `run_envs:Opaque-v0` and so on."""

from __future__ import annotations

import itertools
import os
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Sequence
from gymnasium.vector import AutoresetMode
from probes import Probe

EPISODE_STEPS = 10
FAILING_STEP = 200  # of one environment's life; later than evaluations, which are short, ever come


class Opaque(Probe):
    """Episodes of ten steps with a random observation; its state cannot be saved."""

    action_space = Discrete(2)

    def first(self) -> float:
        self._left = EPISODE_STEPS
        return float(self.np_random.uniform(-1.0, 1.0))

    def step(self, action):
        self._left -= 1
        return self._show(self.np_random.uniform(-1.0, 1.0)), float(action), self._left == 0, False, {}


class CountingThreads(Opaque):
    """Fails where torch has not two threads."""

    def step(self, action):
        if torch.get_num_threads() != 2:
            raise RuntimeError(f"expected 2 threads, found {torch.get_num_threads()}")
        return super().step(action)


def make_counting_threads():
    return CountingThreads()


class Telling(Opaque):
    """Says of every episode that it was a success, how long it was, and whether another process played it."""

    def step(self, action):
        *row, info = super().step(action)
        is_away = os.environ.get("FASTAC_TEST_HOME") != str(os.getpid())
        return *row, info | {"is_success": True, "steps/played": EPISODE_STEPS - self._left, "away": is_away}


class Faulty(Opaque):
    """Breaks late in its life, if it is the second environment to be stepped."""

    stepped = itertools.count()  # set anew by each test

    def __init__(self, how: str) -> None:
        self._how, self._number, self._age = how, -1, 0

    def step(self, action):
        if self._number < 0:
            self._number = next(Faulty.stepped)
        obs, reward, terminated, truncated, info = super().step(action)
        self._age += 1
        if self._number == 1 and self._age == FAILING_STEP:
            if self._how == "raises":
                raise RuntimeError("the wheel came off")
            reward = np.nan if self._how == "reward" else reward
            obs = {"obs": obs * np.nan, "shape": np.zeros(3, np.float32)}.get(self._how, obs)
        return obs, reward, terminated, truncated, info


class BreaksElsewhere(Opaque):
    """Breaks in every process but the one that the test runs in."""

    def step(self, action):
        if os.environ.get("FASTAC_TEST_HOME") != str(os.getpid()):
            raise MemoryError("no more")
        return super().step(action)


class SequenceObs(Opaque):
    """Its observation space is not supported."""

    observation_space = Sequence(Box(-1.0, 1.0, (1,), np.float32))


gym.register("Opaque-v0", Opaque)
gym.register("Telling-v0", Telling)
gym.register("BreaksElsewhere-v0", BreaksElsewhere)
gym.register("SequenceObs-v0", SequenceObs)
for _how in ("raises", "obs", "reward", "shape"):
    gym.register(f"Faulty-{_how}-v0", Faulty, kwargs={"how": _how})


def make_next_step(num_envs: int) -> gym.vector.VectorEnv:
    """A vector environment of the user's own; the native CartPole would be saved and restored."""
    return gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * num_envs)


def make_same_step(num_envs: int) -> gym.vector.VectorEnv:
    """The same, resetting in the step that ends an episode."""
    envs = [lambda: gym.make("CartPole-v1")] * num_envs
    return gym.vector.SyncVectorEnv(envs, autoreset_mode=AutoresetMode.SAME_STEP)


class Leveled(Opaque):
    """Pays its level, which it has to be told; knows how many of it are open in this process."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    now = most = 0

    def __init__(self, level: int, render_mode: str | None = None) -> None:
        self.level, self.render_mode, self._is_open = level, render_mode, True
        Leveled.now += 1
        Leveled.most = max(Leveled.most, Leveled.now)

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(self.level), terminated, truncated, info

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)

    def close(self):
        Leveled.now -= self._is_open
        self._is_open = False


def make_leveled(level: int) -> gym.Env:
    """One of them, as a function."""
    return Leveled(level)


def make_level_two() -> gym.Env:
    """One of them that needs no arguments."""
    return Leveled(2)
