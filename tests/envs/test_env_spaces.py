"""Which spaces are taken, and what an environment gets of a policy's action."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, make_row
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastac.contract import VecEnv
from fastac.envs import adapt, check_spaces, is_image, observation_dtype
from fastac.envs.sync import SyncEnvs

FLAT = Box(-1, 1, (3,), np.float32)


class Recorder(gym.Env):
    """Keeps the actions that it is given."""

    observation_space = FLAT

    def __init__(self, action_space: Space) -> None:
        self.action_space = action_space
        self.seen: list[object] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        return np.zeros(3, np.float32), {}

    def step(self, action: object) -> tuple:
        assert self.action_space.contains(action), action
        self.seen.append(action)
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_flat_observations_are_taken(dtype: type) -> None:
    check_spaces(Box(0, 1, (3,), dtype), Discrete(2))


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.uint8, np.uint8),
        (np.bool_, np.float32),
        (np.int32, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_images_are_taken_and_bytes_stay_bytes(dtype: type, stored: type) -> None:
    image, flat = Box(0, 1, (8, 6, 3), dtype), Box(0, 1, (8,), np.uint8)
    check_spaces(image, Discrete(2))
    assert is_image(image) and not is_image(flat) and not is_image(Discrete(2))
    assert observation_dtype(image) == stored
    assert observation_dtype(flat) == np.float32


@pytest.mark.parametrize(
    "action_space",
    [Discrete(3, start=-1), MultiDiscrete([2, 3]), MultiDiscrete([2, 3], start=[1, -1]), Box(-1, 1, (2,), np.float64)],
)
def test_actions_are_taken(action_space: Space) -> None:
    check_spaces(FLAT, action_space)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Box(0, 255, (84, 84), np.uint8), "expected a Box of one dimension, or of three for an image"),
        (Box(0, 255, (2, 84, 84, 3), np.uint8), "FlattenObservation"),
        (Box(0, 1, (), np.float32), "one dimension"),
        (Discrete(5), r"is Discrete\(5\), expected a Box"),
        (Dict(a=FLAT), "expected a Box"),
        (Box(0, 1, (3,), np.bool_), "dtype"),
    ],
)
def test_other_observations_are_refused(space: Space, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_spaces(space, Discrete(2))


@pytest.mark.parametrize(
    "space",
    [
        MultiBinary(3),
        Text(3),
        MultiDiscrete([[2, 3], [2, 2]]),
        Box(0, 1, (2, 2), np.float32),
        Box(0, 3, (2,), np.int64),
    ],
)
def test_other_actions_are_refused(space: Space) -> None:
    with pytest.raises(ValueError, match="the action space is"):
        check_spaces(FLAT, space)


def recorders(action_space: Space, batched: bool) -> tuple[VecEnv, list[Recorder]]:
    envs = [Recorder(action_space), Recorder(action_space)]
    if not batched:
        builds = iter(envs)
        return SyncEnvs(lambda: next(builds), [0, 1], ""), envs
    vector = SyncVectorEnv([lambda: envs[0], lambda: envs[1]], autoreset_mode=AutoresetMode.NEXT_STEP)
    return adapt(vector, np.random.SeedSequence(0)), envs


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("space", "action", "given"),
    [
        (Discrete(3, start=5), np.array([0, 2]), [5, 7]),
        (Discrete(3), np.array([0, 2]), [0, 2]),
        (MultiDiscrete([2, 3], start=[10, -1]), np.array([[0, 0], [1, 2]]), [[10, -1], [11, 1]]),
        (
            Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)),
            np.array([[-7, -7], [7, 7]], np.float32),
            [[-1, 0], [1, 7]],
        ),
        (Box(-1, 1, (1,), np.float64), np.array([[0.5], [-3]], np.float32), [[0.5], [-1]]),
    ],
)
def test_env_gets_the_action_in_its_space_and_the_policy_keeps_its_own(
    space: Space, action: np.ndarray, given: list, batched: bool
) -> None:
    env, envs = recorders(space, batched)
    begin(env)
    kept = action.copy()
    env.step(action, make_row(env))
    env.step(action[::-1].copy(), make_row(env))
    np.testing.assert_array_equal(action, kept)
    np.testing.assert_array_equal(envs[0].seen, [given[0], given[1]])  # an env may hold on to an action
    np.testing.assert_array_equal(envs[1].seen, [given[1], given[0]])
    assert np.asarray(envs[0].seen[0]).dtype == space.dtype
