"""After how many steps an environment cuts its episodes, however it is built."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from fastac.config import EnvConfig
from fastac.envs import adapt, make_vec
from fastac.envs.limits import find_time_limit

SEED = np.random.SeedSequence(0)
ENDLESS = "probes:fastac/ToyChain-v0"  # registered without a limit


class Own(gym.Env):
    """Cuts its episodes itself."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    max_episode_steps = 33


@pytest.mark.parametrize("vectorization", ["native", "sync", "process"])
def test_by_id(vectorization: str) -> None:
    envs = make_vec(EnvConfig("CartPole-v1", 2, vectorization), SEED)
    assert envs.max_episode_steps == 500
    envs.close()


def test_a_game_s_limit_is_in_steps_and_not_frames() -> None:
    envs = make_vec(EnvConfig("ALE/Pong-v5", 1, max_frames=1001), SEED)
    assert envs.max_episode_steps == 251
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_of_a_given_batch(mode: str) -> None:
    envs = adapt(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode=mode), SEED)
    assert envs.max_episode_steps == 500
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_no_limit_is_none(mode: str) -> None:
    envs = adapt(gym.make_vec(ENDLESS, num_envs=2, vectorization_mode=mode), SEED)
    assert envs.max_episode_steps is None
    envs.close()


def test_the_least_of_several_counts() -> None:
    assert find_time_limit(Own()) == 33
    assert find_time_limit(TimeLimit(Own(), 20)) == 20
    assert find_time_limit(TimeLimit(TimeLimit(Own(), 20), 50)) == 20
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(gym.vector.SyncVectorEnv([Own] * 2))
    assert find_time_limit(wrapped) == 33


def test_envpool_s_spec_has_it_elsewhere() -> None:
    env = Own()
    env.spec = SimpleNamespace(config=SimpleNamespace(max_episode_steps=21))
    assert find_time_limit(env) == 21


def test_ale_s_own_batch_counts_frames() -> None:
    pytest.importorskip("ale_py.vector_env")  # which registers its games
    env = gym.make_vec("ALE/Pong-v5", num_envs=1)
    assert find_time_limit(env) == 27_000
