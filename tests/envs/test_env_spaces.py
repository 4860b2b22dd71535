"""Which spaces are taken, and what an environment gets of a policy's action."""

from __future__ import annotations

import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, make_row
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Space, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastac.config import EnvConfig
from fastac.contract import VecEnv
from fastac.envs import adapt, check_spaces, is_image, make_vec, observation_dtype
from fastac.envs.rows import Reading
from fastac.envs.spaces import SquashedBox, map_actions, needs_flattening
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.bool_])
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
    [
        Discrete(3, start=-1),
        MultiDiscrete([2, 3]),
        MultiDiscrete([2, 3], start=[1, -1]),
        MultiBinary(3),
        Box(-1, 1, (2,), np.float64),
    ],
)
def test_actions_are_taken(action_space: Space) -> None:
    check_spaces(FLAT, action_space)


@pytest.mark.parametrize(
    "space",
    [
        Text(3),
        Sequence(FLAT),
        Graph(FLAT, None),
        OneOf((FLAT, FLAT)),
        Dict(),
        Tuple(()),
    ],
    ids=lambda space: type(space).__name__,
)
def test_observations_of_no_fixed_size_are_refused(space: Space) -> None:
    with pytest.raises(
        ValueError, match=r"^the observation space is .*, expected a Box, Discrete, MultiDiscrete or Mu"
    ):
        check_spaces(space, Discrete(2))


@pytest.mark.parametrize(
    ("space", "drop_keys", "words"),
    [
        (
            Dict(a=FLAT, b=Dict(c=Text(3))),
            (),
            "the observation's key 'b/c' is a Text, .* --drop-keys b/c, or drop_keys",
        ),
        (Dict(a=FLAT, b=Text(3), c=Graph(FLAT, None)), (), r"--drop-keys b c, or drop_keys=\('b', 'c'\) in Python"),
        (Tuple((FLAT, Sequence(FLAT))), (), "the observation's key '1' is a Sequence"),
        (Dict(a=FLAT, b=Text(3)), ("B",), "drop_keys has 'B', expected keys of the observation: a, b"),
        (Dict(a=FLAT), ("a",), "expected at least one key to be left to learn from"),
        (FLAT, ("a",), "expected keys of the observation: none, since it is no Dict"),
    ],
)
def test_keys_without_numbers_are_named(space: Space, drop_keys: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_spaces(space, Discrete(2), Reading(drop_keys))


def test_keys_that_are_dropped_need_no_numbers() -> None:
    check_spaces(Dict(a=FLAT, b=Dict(c=Text(3)), d=Text(3)), Discrete(2), Reading(("b", "d")))


@pytest.mark.parametrize(
    ("space", "needs"),
    [
        (FLAT, False),
        (Box(0, 255, (8, 6, 3), np.uint8), False),
        (Box(0, 1, ()), True),
        (Box(0, 1, (8, 6)), True),
        (Box(0, 1, (2, 8, 6, 3)), True),
        (Discrete(5), True),
        (MultiBinary(3), True),
        (Dict(image=Box(0, 255, (8, 6, 3), np.uint8)), True),
        (Tuple((FLAT, Dict(a=Discrete(2)))), True),
    ],
)
def test_what_is_neither_a_vector_nor_an_image_is_taken_flattened(space: Space, needs: bool) -> None:
    check_spaces(space, Discrete(2))
    assert needs_flattening(space) is needs


@pytest.mark.parametrize(
    "space",
    [
        MultiBinary((2, 3)),
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
        (MultiBinary(3), np.array([[0, 1, 1], [1, 0, 0]]), [[0, 1, 1], [1, 0, 0]]),
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


LOPSIDED = Box(np.array([-2.0, 0.0], np.float32), np.array([4.0, 1.0], np.float32))


def test_squashed_actions_by_hand() -> None:
    squash = map_actions(SquashedBox(LOPSIDED))
    half = math.atanh(0.5)
    action = np.array([[0.0, 0.0], [half, -half], [-99.0, 99.0]], np.float32)
    kept = action.copy()
    np.testing.assert_allclose(squash(action), [[1.0, 0.5], [2.5, 0.25], [-2.0, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(action, kept)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_squashed_actions_never_leave_the_space(dtype: type) -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=200).astype(dtype)
    space = SquashedBox(Box(low, low + rng.random(200).astype(dtype), dtype=dtype))
    for scale in (0.1, 3.0, 100.0):
        for action in map_actions(space)(scale * rng.standard_normal((20, 200), dtype=np.float32)):
            assert space.contains(action)


def test_a_squashed_box_is_the_same_space() -> None:
    assert SquashedBox(LOPSIDED) == LOPSIDED and SquashedBox(LOPSIDED) == LOPSIDED  # what films compare
    assert isinstance(pickle.loads(pickle.dumps(SquashedBox(LOPSIDED))), SquashedBox)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Discrete(3), r"the action space is Discrete\(3\), and only a Box has bounds to squash into"),
        (MultiBinary(3), "only a Box has bounds"),
        (Box(-1, np.inf, (1,)), "no squashing into bounds that are not finite"),
        (Box(-3e38, 3e38, (1,)), "no squashing into bounds that are not finite"),
    ],
)
def test_what_cannot_be_squashed_is_refused_in_a_sentence(space: Space, words: str) -> None:
    with pytest.raises(ValueError, match=f"squash_actions is True, expected False: .*{words}"):
        SquashedBox(space)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "ALE/Pong-v5"])
def test_ids_whose_actions_cannot_be_squashed_are_refused(env_id: str) -> None:
    with pytest.raises(ValueError, match="squash_actions is True, expected False"):
        make_vec(EnvConfig(env_id, 8, squash_actions=True), np.random.SeedSequence(0))


@pytest.mark.parametrize("how", ["sync", "process", "given"])
def test_env_gets_the_action_squashed(how: str) -> None:
    """The probe pays -(a - 0.5)^2, which tells what it was given."""
    probe = "probes:fastac/ContinuousReward-v0"
    if how == "given":
        env = adapt(SyncVectorEnv([lambda: gym.make(probe)] * 3), np.random.SeedSequence(0), squashes=True)
    else:
        env = make_vec(EnvConfig(probe, 3, how, squash_actions=True), np.random.SeedSequence(0))
    begin(env)
    action = np.array([[-2.0], [0.3], [5.0]], np.float32)
    row = make_row(env)
    env.step(action, row)
    np.testing.assert_allclose(row.reward, -((np.tanh(action[:, 0]) - 0.5) ** 2), rtol=1e-5)
    env.close()


def test_empty_spaces_are_refused():
    empty = Box(-1.0, 1.0, (0,))
    with pytest.raises(ValueError, match="which holds no numbers"):
        check_spaces(empty, Discrete(2))
    with pytest.raises(ValueError, match="not empty"):
        check_spaces(FLAT, empty)
