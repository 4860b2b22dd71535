"""Flattened observations: as Gymnasium flattens them, one by one and in batches, in every autoreset mode."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from env_rows import Saving, begin, draw_actions, exit_with_parent, make_row
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.spaces.utils import flatten
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, iterate
from probes import DictReward

from fastac.config import EnvConfig
from fastac.contract import EnvFailure, VecEnv
from fastac.envs import adapt, make_vec
from fastac.envs.rows import FlatBox
from fastac.envs.sync import SyncEnvs

PROBE = "probes:fastac/DictReward-v0"
SPACES = [
    Discrete(4, start=-2),
    MultiDiscrete([2, 3], start=[1, -1]),
    MultiDiscrete([[2, 3], [1, 4]]),
    MultiBinary(3),
    MultiBinary((2, 3)),
    Box(0, 1, ()),
    Box(-1, 1, (2, 3), np.float64),
    Box(0, 1, (2, 2), np.bool_),
    Box(0, 255, (2, 3, 4, 2), np.uint8),
    Tuple((Discrete(3), Box(0, 1, (2,)))),
    Dict(b=Dict(x=Box(0, 1, (2, 3, 4, 1)), y=Tuple((MultiBinary(2),))), a=Discrete(2)),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_one_and_many_are_flattened_as_gymnasium_flattens_one(space: Space) -> None:
    flat, batched = FlatBox(space), batch_space(space, 5)
    space.seed(0)
    batched.seed(1)
    for _ in range(20):
        one, many = space.sample(), batched.sample()
        np.testing.assert_array_equal(FlatBox(space).flatten(one), flatten(space, one))
        expected = [flatten(space, each) for each in iterate(batched, many)]
        np.testing.assert_array_equal(FlatBox(space).flatten(many), expected)
        assert all(flat.contains(each) for each in expected)
    assert flat.original == space


def test_the_order_and_the_offset_by_hand() -> None:
    space = Dict(word=Discrete(3, start=-1), at=Tuple((MultiBinary(2), Box(-9, 9, (1, 2), np.float32))))
    obs = {"at": (np.array([1, 0]), np.array([[2.5, -3.0]])), "word": 1}
    assert FlatBox(space).flatten(obs).tolist() == [0, 0, 1, 1, 0, 2.5, -3.0]
    batch = {"at": (np.array([[1, 0]] * 2), np.array([[[2.5, -3.0]]] * 2)), "word": np.array([1, -1])}
    assert FlatBox(space).flatten(batch).tolist() == [[0, 0, 1, 1, 0, 2.5, -3.0], [1, 0, 0, 1, 0, 2.5, -3.0]]


@pytest.mark.parametrize(
    ("space", "obs", "words"),
    [
        (Discrete(3), 3, r"the observation holds a number outside of the \[3\] from \[0\] on"),
        (Discrete(3, start=2), 1, r"outside of the \[3\] from \[2\] on"),
        (Discrete(3), 1.0, "of dtype float64, expected whole numbers"),
        (Discrete(3), [[1, 2]], r"has shape \[1, 2, 1\], expected \[1\]"),
        (Box(0, 1, (2, 2)), np.zeros(4), r"has shape \[4\], expected \[2, 2\], or one dimension more for a batch"),
        (Box(0, 1, (2, 2)), "ab", "expected numbers"),
        (Box(0, 1, (2, 2)), [[1, 2], [3]], "not an array of numbers"),
        (MultiDiscrete([2, 2]), [0, -1], r"outside of the \[2, 2\]"),
        (Dict(a=Discrete(2), b=Discrete(2)), np.zeros(4), "is a ndarray, expected a dict of a, b"),
        (Dict(a=Discrete(2), b=Discrete(2)), {"a": 1}, "has no 'b', expected a dict of a, b"),
        (Dict(a=Dict(c=Discrete(2))), {"a": {"c": 2}}, r"the observation\['a'\]\['c'\] holds a number outside"),
        (Tuple((Discrete(2), Discrete(2))), (1,), r"is \(1,\), expected a tuple of 2"),
        (Tuple((Discrete(2), Discrete(2))), (1, [1, 0]), "the parts of the observation are not batches of one size"),
    ],
)
def test_another_observation_is_refused_in_a_sentence(space: Space, obs: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FlatBox(space).flatten(obs)


def own(seeds: list[int]) -> VecEnv:
    env = make_vec(EnvConfig(PROBE, len(seeds), "sync"), np.random.SeedSequence(0))
    assert isinstance(env, SyncEnvs)
    env.take_seeds(seeds)
    return env


def given(seeds: list[int], mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> VecEnv:
    env = adapt(SyncVectorEnv([DictReward] * len(seeds), autoreset_mode=mode), np.random.SeedSequence(0))
    env._seed, env._first_obs = seeds, None
    return env


def test_a_batch_that_is_given_is_the_same_as_one_of_our_own() -> None:
    seeds = [3, 1, 4, 1, 5]
    ours, theirs = own(seeds), given(seeds)
    assert ours.description == "sync (as asked), observations flattened to 4 numbers"
    assert theirs.description == "given (SyncVectorEnv), observations flattened to 4 numbers"
    assert ours.single_observation_space == theirs.single_observation_space
    first = begin(ours)
    assert first.shape == (5, 4) and len(np.unique(first, axis=0)) > 2
    np.testing.assert_array_equal(first, begin(theirs))
    actions = draw_actions(ours, 60)
    trace = exit_with_parent(ours, actions)
    trace.assert_equal(exit_with_parent(theirs, actions))
    assert set(trace.reward[trace.valid].tolist()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_final_observations_are_flattened_too(mode: AutoresetMode) -> None:
    env = given([0, 1, 2, 3, 4], mode)
    shown = begin(env)
    row = make_row(env)
    for action in draw_actions(env, 20):
        finals = env.step(action, row)
        np.testing.assert_array_equal(finals, shown)  # the probe's last observation is its first
        assert row.start.all() and row.obs.any(axis=1).all()
        shown = row.obs.copy()
    assert len(np.unique(shown, axis=0)) > 1


def test_only_the_environments_that_ended_have_a_final_observation() -> None:
    class Slow(DictReward):
        def step(self, action: object) -> tuple:
            self.elapsed = getattr(self, "elapsed", 0) + 1
            obs, reward, _, _, infos = super().step(action)
            return obs, reward, self.elapsed % 3 == 0, False, infos

    vector = SyncVectorEnv([DictReward, Slow], autoreset_mode=AutoresetMode.SAME_STEP)
    env = adapt(vector, np.random.SeedSequence(0))
    shown, row = begin(env), make_row(env)
    for t, action in enumerate(draw_actions(env, 6)):
        finals = env.step(action, row)
        np.testing.assert_array_equal(finals, shown)
        assert row.start.tolist() == [True, t % 3 == 2]
        shown = row.obs.copy()


def test_a_wrong_observation_of_a_batch_is_said_in_one_sentence() -> None:
    class Wrong(DictReward):
        def _show(self) -> dict:
            return super()._show() | {"word": np.int64(7)}

    with pytest.raises(EnvFailure, match=r"raised ValueError: the observation\['word'\] holds a number outside"):
        begin(adapt(SyncVectorEnv([Wrong]), np.random.SeedSequence(0)))


def test_a_user_batch_that_saves_itself_is_saved_flattened() -> None:
    env, fresh = (adapt(Saving([DictReward, DictReward]), np.random.SeedSequence(0)) for _ in range(2))
    begin(env)
    actions = draw_actions(env, 3)
    for e, f in zip(env._env.unwrapped.envs, fresh._env.unwrapped.envs, strict=True):
        f.np_random = np.random.default_rng(5)
        e.np_random = np.random.default_rng(5)
    fresh.set_state(env.get_state())
    exit_with_parent(env, actions).assert_equal(exit_with_parent(fresh, actions))


@pytest.mark.parametrize(("env_id", "size"), [("FrozenLake-v1", 16), ("Blackjack-v1", 45), ("CliffWalking-v1", 48)])
def test_counted_observations_of_gymnasiums_own_are_one_hot(env_id: str, size: int) -> None:
    env = make_vec(EnvConfig(env_id, 3, "sync"), np.random.SeedSequence(0))
    assert env.single_observation_space.shape == (size,)
    begin(env)
    trace = exit_with_parent(env, draw_actions(env, 30))
    assert (trace.obs.sum(axis=-1) == (3 if env_id == "Blackjack-v1" else 1)).all()
    assert gym.make(env_id).observation_space == env.single_observation_space.original
