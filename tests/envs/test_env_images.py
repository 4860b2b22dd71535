"""Image observations of any Gymnasium environment: through every way of batching, in every autoreset mode."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from env_rows import Trace, begin, exit_with_parent, make_row
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastac.contract import VecEnv
from fastac.envs import adapt, observation_dtype
from fastac.envs.process import ProcessEnvs
from fastac.envs.sync import SyncEnvs

LENGTH = 3


class Pictures(gym.Env):
    """Shows `[H, W, C]` of numbers that count up through all episodes, which last 3 steps."""

    action_space = Discrete(2)

    def __init__(self, dtype: str) -> None:
        self.observation_space = Box(0, 255 if dtype == "uint8" else 1, (4, 5, 3), np.dtype(dtype))
        self.count = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        self.elapsed = 0
        return self.show(), {}

    def step(self, action: object) -> tuple:
        self.elapsed += 1
        return self.show(), 1.0, self.elapsed == LENGTH, False, {}

    def show(self) -> np.ndarray:
        self.count += 1
        return shown(self.count, self.observation_space.dtype)


def shown(count: int, dtype: np.dtype) -> np.ndarray:
    picture = np.arange(60).reshape(4, 5, 3) + 13 * count
    return (picture % 256 if dtype == np.uint8 else picture % 2).astype(dtype)


def batch(how: str, dtype: str) -> VecEnv:
    build = partial(Pictures, dtype)
    if how == "sync":
        return SyncEnvs(build, [0, 1, 2], "")
    if how == "process":
        return ProcessEnvs(build, build(), [0, 1, 2], 2, "")
    return adapt(SyncVectorEnv([build] * 3, autoreset_mode=AutoresetMode[how]), np.random.SeedSequence(0))


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float32"])
@pytest.mark.parametrize("how", ["sync", "process", "NEXT_STEP"])
def test_images_arrive_as_they_are(how: str, dtype: str) -> None:
    env = batch(how, dtype)
    assert (env.frame_stack, env.frame_skip) == (1, 1)
    first = begin(env)
    trace: Trace = exit_with_parent(env, np.zeros((8, 3), np.int64))
    env.close()
    seen = [first, *trace.obs]
    assert seen[0].dtype == env.single_observation_space.dtype
    for t, obs in enumerate(seen):
        np.testing.assert_array_equal(obs, np.stack([shown(t + 1, np.dtype(dtype))] * 3))
    assert trace.valid[:, 0].tolist() == [True, True, True, False] * 2
    assert not trace.life_lost.any()


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_final_images_come_out_of_band(mode: str) -> None:
    env = batch(mode, "uint8")
    begin(env)
    finals = [env.step(np.zeros(3, np.int64), row := make_row(env)) for _ in range(LENGTH)]
    assert finals[:2] == [None, None]
    np.testing.assert_array_equal(finals[2], np.stack([shown(4, np.dtype(np.uint8))] * 3))
    np.testing.assert_array_equal(row.obs, np.stack([shown(5, np.dtype(np.uint8))] * 3))
    assert finals[2].dtype == np.uint8 and row.start.all()
    env.close()


def test_images_of_other_numbers_are_stored_as_floats() -> None:
    """What a rollout keeps of them, into which environments write in place."""
    env = batch("sync", "bool")
    row = make_row(env)
    obs = np.full(row.obs.shape, 7, observation_dtype(env.single_observation_space))
    env.reset(obs, row.start)
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(obs[0], shown(1, np.dtype(np.bool_)).astype(np.float32))
