"""The probes pay what their docstrings say."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from probes import (
    ActionReward,
    ConstantReward,
    ContinuousReward,
    DelayedReward,
    DictReward,
    Memory,
    MultiBinaryReward,
    MultiDiscreteReward,
    ObsActionReward,
    ObsReward,
    Probe,
    ShortLong,
)


def play(env: Probe, action: object) -> tuple[list[float], list[float]]:
    """Return what was seen before each step of the next episode, and each reward."""
    obs, _ = env.reset()
    seen, rewards, terminated = [], [], False
    while not terminated:
        seen.append(float(obs[0]))
        obs, reward, terminated, truncated, _ = env.step(action)
        assert env.observation_space.contains(obs) and not truncated
        rewards.append(float(reward))
    return seen, rewards


@pytest.mark.parametrize(
    ("env", "action", "rewards"),
    [
        (ConstantReward(), 0, [1.0]),
        (DelayedReward(), 0, [0.0, 1.0]),
        (ActionReward(), 0, [-1.0]),
        (ActionReward(), 1, [1.0]),
        (ContinuousReward(), np.array([0.5]), [0.0]),
        (ContinuousReward(), np.array([-0.5]), [-1.0]),
        (MultiDiscreteReward(), np.array([1, 2]), [1.0]),
        (MultiDiscreteReward(), np.array([1, 0]), [0.5]),
        (MultiBinaryReward(), np.array([1, 0, 1], np.int8), [1.0]),
        (MultiBinaryReward(), np.array([1, 1, 0], np.int8), [pytest.approx(1 / 3)]),
    ],
)
def test_fixed_rewards(env: Probe, action: object, rewards: list[float]) -> None:
    assert play(env, action)[1] == rewards


def test_rewards_that_depend_on_the_first_observation() -> None:
    for env, length in ((ObsReward(), 1), (ObsActionReward(), 1), (Memory(4), 4)):
        env.reset(seed=0)
        episodes = [play(env, 1) for _ in range(50)]
        assert {seen[0] for seen, _ in episodes} == {-1.0, 1.0}
        for seen, rewards in episodes:
            assert seen[1:] == [0.0] * (length - 1)
            assert rewards == [0.0] * (length - 1) + [seen[0]]


def test_rewards_for_what_a_dict_shows() -> None:
    env = DictReward()
    env.reset(seed=0)
    seen = set()
    for _ in range(50):
        obs, _ = env.reset()
        assert env.observation_space.contains(obs)
        word, sign = int(obs["word"]) + 1, int(obs["target"]["sign"][0, 0] > 0)
        seen.add((word, sign))
        for action, pays in (([word, sign], 1.0), ([word, 1 - sign], 0.5), ([(word + 1) % 3, 1 - sign], 0.0)):
            last, reward, terminated, truncated, _ = env.step(np.array(action))
            assert (reward, terminated, truncated) == (pays, True, False) and last == obs
    assert len(seen) == 6


def test_short_and_long_episodes_are_equally_likely() -> None:
    env = ShortLong()
    env.reset(seed=0)
    returns = [sum(play(env, 0)[1]) for _ in range(400)]
    assert set(returns) == {1.0, 50.0}
    assert abs(np.mean(returns) - 25.5) < 5.0  # four standard errors


def test_ids_are_registered() -> None:
    assert isinstance(gym.make("fastac/Memory-v0", length=7).unwrapped, Memory)
