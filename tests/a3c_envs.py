"""Environments for runs with A3C, that fail in one way or another; apart, as workers import this."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
from run_envs import Opaque

# Evaluations play this many environments, a worker another number: that is how a factory tells them apart.
EVALUATED = 3
FAILING_STEP = 60  # of a worker's environment


class Mishap(Opaque):
    """Fails late in its life, in any process but the one that the test runs in.

    Args:
        how: "raises" or "hangs".
        home: the test's process.
        marks: a folder in which the first to fail leaves a mark, for all others to go on; None for all to fail.
    """

    def __init__(self, how: str, home: int, marks: Path | None) -> None:
        self._how, self._marks, self._age = how, marks, 0
        self._is_away = os.getpid() != home

    def step(self, action):
        self._age += 1
        if self._is_away and self._age == FAILING_STEP and self._is_first():
            if self._how == "hangs":
                time.sleep(600.0)
            raise RuntimeError("the wheel came off")
        return super().step(action)

    def _is_first(self) -> bool:
        if self._marks is None:
            return True
        try:
            (self._marks / f"failed-{os.getpid()}").touch()
            (self._marks / "failed").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class FailsToPlay(Opaque):
    """Cannot be stepped."""

    def step(self, action):
        raise RuntimeError("the stage collapsed")


def make_opaque(num_envs: int) -> gym.vector.VectorEnv:
    return gym.vector.SyncVectorEnv([Opaque] * num_envs)


def make_mishap(how: str, home: int, marks: Path | None, num_envs: int) -> gym.vector.VectorEnv:
    return gym.vector.SyncVectorEnv([partial(Mishap, how, home, marks)] * num_envs)


def make_unplayable(num_envs: int) -> gym.vector.VectorEnv:
    """What workers can train on but evaluations cannot play."""
    return gym.vector.SyncVectorEnv([FailsToPlay if num_envs == EVALUATED else Opaque] * num_envs)


def make_at_home(home: int, num_envs: int) -> gym.vector.VectorEnv:
    """What can only be built in the test's process."""
    if os.getpid() != home:
        raise RuntimeError("there is no stage here")
    return make_opaque(num_envs)
