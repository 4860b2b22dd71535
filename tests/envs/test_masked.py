"""CartPole without velocities is CartPole, but for what it shows."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from env_rows import begin, draw_actions, exit_with_parent

from fastac.config import EnvConfig
from fastac.contract import VecEnv
from fastac.envs import make_vec
from fastac.envs.masked import MaskedCartPole

MASKED = "fastac.envs.masked:fastac/MaskedCartPole-v1"
SHOWN = [0, 2]


def build(env_id: str, seed: int = 0, num_envs: int = 5) -> VecEnv:
    return make_vec(EnvConfig(env_id, num_envs, "sync"), np.random.SeedSequence(seed))


def test_it_shows_position_and_angle_of_the_same_cartpole() -> None:
    full, masked = build("CartPole-v1"), build(MASKED)
    assert masked.single_action_space == full.single_action_space
    np.testing.assert_array_equal(begin(masked), begin(full)[:, SHOWN])
    actions = draw_actions(full, 300)
    seen, expected = exit_with_parent(masked, actions), exit_with_parent(full, actions)
    assert expected.terminated.sum() > 10
    expected.obs = expected.obs[..., SHOWN]
    expected.assert_equal(seen)


def test_its_space_is_that_of_what_it_shows() -> None:
    full, masked = gym.make("CartPole-v1"), gym.make(MASKED)
    assert isinstance(masked, MaskedCartPole)
    assert masked.observation_space.dtype == np.float32
    np.testing.assert_array_equal(masked.observation_space.low, full.observation_space.low[SHOWN])
    np.testing.assert_array_equal(masked.observation_space.high, full.observation_space.high[SHOWN])


def test_episodes_are_cut_after_500_steps() -> None:
    env = gym.make(MASKED)
    env.reset(seed=0)
    for step in range(1, 501):
        env.unwrapped.state = np.zeros(4)  # upright for ever
        _, _, terminated, truncated, _ = env.step(step % 2)
        assert not terminated and truncated == (step == 500)


def test_continuation_is_bit_equal() -> None:
    env, fresh = build(MASKED), build(MASKED, seed=9)
    begin(env)
    begin(fresh)
    actions = draw_actions(env, 337)
    exit_with_parent(env, actions[:137])
    fresh.set_state(env.get_state())
    exit_with_parent(env, actions[137:]).assert_equal(exit_with_parent(fresh, actions[137:]))
    np.testing.assert_array_equal(begin(env), begin(fresh))


def test_a_state_from_before_the_first_reset_still_seeds() -> None:
    env, other = build(MASKED), build(MASKED)
    other.set_state(env.get_state())
    np.testing.assert_array_equal(begin(env), begin(other))
