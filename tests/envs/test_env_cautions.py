"""What does not do here what it seems to do is said; seeds are such as every simulator takes."""

from __future__ import annotations

from contextlib import closing
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, draw_actions, exit_with_parent
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers import vector as vector_wrappers

from fastac.config import EnvConfig
from fastac.contract import VecEnv
from fastac.envs import adapt, make_vec, name_env
from fastac.envs.seeds import draw_batch_seed, draw_seeds

SEED = np.random.SeedSequence(0)


def normalized() -> gym.Env:
    return NormalizeReward(NormalizeObservation(gym.make("CartPole-v1", disable_env_checker=True)))


def build(env: object, vectorization: str = "sync") -> VecEnv:
    named = name_env(env)
    return make_vec(EnvConfig(named.env_id, 2, vectorization), SEED, given=named.given)


def make_batch(n: int) -> gym.vector.VectorEnv:
    return vector_wrappers.NormalizeObservation(gym.make_vec("CartPole-v1", num_envs=n))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: build(normalized), ["NormalizeObservation", "NormalizeReward"]),
        (lambda: build(normalized, "process"), ["NormalizeObservation", "NormalizeReward"]),
        (lambda: build(make_batch), ["NormalizeObservation"]),
        (
            lambda: build(lambda n: gym.vector.SyncVectorEnv([normalized] * n)),
            ["NormalizeObservation", "NormalizeReward"],
        ),
        (
            lambda: build(lambda n: gym.vector.AsyncVectorEnv([normalized] * n)),
            ["NormalizeObservation", "NormalizeReward"],
        ),
        (lambda: build("CartPole-v1"), []),
    ],
)
def test_normalising_wrappers_are_named(make: object, names: list[str]) -> None:
    envs = make()
    assert [caution.partition(" ")[0] for caution in envs.cautions] == names
    assert all("in its place" in caution for caution in envs.cautions)
    envs.close()


class Pool(gym.vector.SyncVectorEnv):
    """Stands in for a pool of EnvPool."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([lambda: gym.make("CartPole-v1", disable_env_checker=True)] * num_envs)


Pool.__module__ = "envpool.python.gymnasium_envpool"


def test_a_pool_that_never_hears_the_seed_is_named() -> None:
    envs = build(lambda n: Pool(n))
    assert len(envs.cautions) == 1 and "give the function a parameter seed" in envs.cautions[0]
    envs.close()
    envs = build(lambda num_envs, seed: Pool(num_envs))
    assert envs.cautions == ()
    envs.close()


def test_a_pool_is_reset_without_the_seed_of_which_it_would_warn(monkeypatch) -> None:
    given = []
    reset = Pool.reset
    monkeypatch.setattr(Pool, "reset", lambda self, seed=None, options=None: given.append(seed) or reset(self))
    with closing(build(lambda num_envs, seed: Pool(num_envs))) as envs:
        begin(envs)
        envs.reseed(np.random.SeedSequence(3))
        begin(envs)
    assert given == [None, None]


@pytest.mark.parametrize("make", [normalized, make_batch])
def test_what_they_have_learned_is_saved_with_the_environments(make: object) -> None:
    envs, others = build(make), build(make)
    begin(envs), begin(others)
    actions = draw_actions(envs, 60)
    exit_with_parent(envs, actions[:40])
    others.set_state(envs.get_state())
    exit_with_parent(envs, actions[40:]).assert_equal(exit_with_parent(others, actions[40:]))
    envs.close(), others.close()


class Heard(gym.Env):
    """Remembers the seeds that environments are reset with."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    seeds: ClassVar[list] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        Heard.seeds.append(seed)
        return np.zeros(1, np.float32), {}


def test_seeds_fit_every_simulator() -> None:
    for make in (lambda: build(Heard), lambda: adapt(gym.vector.SyncVectorEnv([Heard] * 2), SEED)):
        Heard.seeds = []
        envs = make()
        begin(envs)
        assert len(Heard.seeds) == len(set(Heard.seeds)) == 2
        for seed in Heard.seeds:
            np.random.RandomState(seed), np.array([seed], dtype=np.int32)  # raise where it does not fit
        begin(envs)
        assert Heard.seeds[2:] == [None, None]


def test_no_two_environments_of_a_run_share_a_seed() -> None:
    first = [child.generate_state(1, np.uint32)[0] >> 1 for child in np.random.SeedSequence(321).spawn(5691)]
    assert len(set(first)) == 5690, "two of so many are alike by chance"
    seeds = draw_seeds(np.random.SeedSequence(321), 5691)
    assert len(set(seeds)) == len(seeds) == 5691
    assert min(seeds) >= 0 and max(seeds) < 2**31
    assert seeds[:5690] == [int(seed) for seed in first[:5690]]


def test_a_batch_may_count_up_from_its_seed() -> None:
    num = 2**31 - 3
    assert {draw_batch_seed(np.random.SeedSequence(i), num) for i in range(40)} == {0, 1, 2}
