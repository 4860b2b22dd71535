"""Each compiled environment is Gymnasium's: spaces, limits, first states, and every step from the same state."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, make_row
from gymnasium.wrappers import TimeLimit

from fastac.config import EnvConfig
from fastac.envs import make_vec
from fastac.envs.compiled.adapter import CompiledEnvs
from fastac.envs.compiled.trigonometry import sin_cos

NUM_STEPS = 10_000
MASKED = "fastac.envs.masked:fastac/MaskedCartPole-v1"
WALK = "fastac.envs.compiled.random_walk:fastac/RandomWalk-v0"
CASES = [
    ("CartPole-v1", {}),
    ("CartPole-v0", {"sutton_barto_reward": True}),
    (MASKED, {}),
    ("Acrobot-v1", {}),
    ("MountainCar-v0", {}),
    ("MountainCar-v0", {"goal_velocity": 0.03, "max_episode_steps": 1000}),
    ("MountainCarContinuous-v0", {}),
    ("Pendulum-v1", {}),
    ("Pendulum-v1", {"g": 9.81}),
]


def build(env_id: str, num_envs: int = 1, **kwargs: object) -> CompiledEnvs:
    envs = make_vec(EnvConfig(env_id, num_envs, "compiled", env_kwargs=kwargs), np.random.SeedSequence(0))
    assert isinstance(envs, CompiledEnvs)
    return envs


def read_places(envs: CompiledEnvs) -> np.ndarray:
    state = envs.get_state()["compiled"]["state"]
    assert isinstance(state, np.ndarray)
    return state


def place(env: gym.Env, state: np.ndarray, is_first: bool) -> None:
    """Put Gymnasium's environment into a state, in the type that it has there."""
    core = env.unwrapped
    kind = type(core).__name__
    if kind == "Continuous_MountainCarEnv":
        core.state = state[:2].astype(np.float64 if is_first else np.float32)
    elif kind == "MountainCarEnv":
        core.state = tuple(state)
    else:
        core.state = state.copy()
    core.steps_beyond_terminated = None


def begin_limit(env: gym.Env) -> None:
    layer = env
    while not isinstance(layer, TimeLimit):
        layer = layer.env
    layer._elapsed_steps = 0


@pytest.mark.parametrize(("env_id", "kwargs"), CASES)
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_every_step_is_gymnasiums(env_id: str, kwargs: dict[str, object]) -> None:
    theirs, ours = gym.make(env_id, **kwargs), build(env_id, **kwargs)
    assert (ours.single_observation_space, ours.single_action_space) == (theirs.observation_space, theirs.action_space)
    assert ours.max_episode_steps == kwargs.get("max_episode_steps", theirs.spec.max_episode_steps)
    theirs.reset(seed=0)
    begin(ours)
    place(theirs, read_places(ours)[0], is_first=True)
    row, ends, rng = make_row(ours), 0, np.random.default_rng(0)
    theirs.action_space.seed(0)
    done, action = False, theirs.action_space.sample()
    found, expected = [], []
    for _ in range(NUM_STEPS):
        if "CartPole" in env_id or rng.random() < 0.1:  # persistence lets cars climb and poles swing
            action = theirs.action_space.sample()
        ours.step(np.asarray(action)[None], row)
        state = read_places(ours)[0]
        if done:
            assert row.start[0] and not row.valid[0]
            place(theirs, state, is_first=True)
            begin_limit(theirs)
            done = False
            continue
        obs, reward, terminated, truncated, _ = theirs.step(action)
        reached = np.asarray(theirs.unwrapped.state, np.float64)
        expected.append((reached, obs, reward, (terminated, truncated, True)))
        flags = row.terminated[0], row.truncated[0], row.valid[0]
        found.append((state[: len(reached)], row.obs[0].copy(), row.reward[0], flags))
        done = terminated or truncated
        ends += done
        place(theirs, state, is_first=False)
    assert ends >= 9
    (states, obs, rewards, flags), (their_states, their_obs, their_rewards, their_flags) = (
        map(np.array, zip(*rows, strict=True)) for rows in (found, expected)
    )
    np.testing.assert_allclose(states, their_states, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(obs, their_obs, rtol=2e-7, atol=1e-12)
    np.testing.assert_allclose(rewards, their_rewards, rtol=1e-7)
    np.testing.assert_array_equal(flags, their_flags)


@pytest.mark.parametrize(("env_id", "kwargs"), [CASES[0], *CASES[3:5], *CASES[6:8]])
def test_episodes_begin_as_gymnasiums(env_id: str, kwargs: dict[str, object]) -> None:
    theirs, ours = gym.make(env_id, **kwargs), build(env_id, 20_000, **kwargs)
    found = begin(ours)
    expected = np.stack([theirs.reset(seed=0 if k == 0 else None)[0] for k in range(2000)])
    np.testing.assert_allclose(found.min(axis=0), expected.min(axis=0), atol=5e-3)
    np.testing.assert_allclose(found.max(axis=0), expected.max(axis=0), atol=5e-3)
    spread = expected.std(axis=0)
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), atol=0.1 * spread.max())
    np.testing.assert_allclose(found.std(axis=0), spread, atol=0.05 * spread.max())


def test_the_random_walk_has_the_values_that_it_promises() -> None:
    """Of the exact critic x / (1 - gamma), TD errors are independent: the step times gamma / (1 - gamma)."""
    envs, gamma = build(WALK, 4000), 0.9
    assert envs.max_episode_steps is None
    places, rewards = [begin(envs)[:, 0].copy()], []
    row = make_row(envs)
    for _ in range(20):
        envs.step(np.zeros(4000, np.int64), row)
        places.append(row.obs[:, 0].copy())
        rewards.append(row.reward.copy())
        assert row.valid.all() and not row.terminated.any() and not row.truncated.any()
    walk, reward = np.array(places, np.float64), np.array(rewards, np.float64)
    np.testing.assert_array_equal(walk[0], 0.0)
    np.testing.assert_array_equal(reward, walk[:-1])
    value = walk / (1.0 - gamma)
    error = reward + gamma * value[1:] - value[:-1]
    scale = gamma / (1.0 - gamma)
    assert abs(error.mean()) < 4 * scale / error.size**0.5
    assert abs(error.std() / scale - 1.0) < 4 / (2 * error.size) ** 0.5
    assert abs(np.corrcoef(error[:-1].ravel(), error[1:].ravel())[0, 1]) < 4 / error.size**0.5


def test_sine_and_cosine_are_exact_enough() -> None:
    rng = np.random.default_rng(0)
    angles = np.concatenate(
        [rng.uniform(-most, most, 4000) for most in (0.2, 4.0, 100.0, 2e5)] + [[0.0, np.pi / 2, 1e300]]
    )
    found = np.array([sin_cos(angle) for angle in angles])
    np.testing.assert_allclose(found, np.stack([np.sin(angles), np.cos(angles)], axis=1), atol=3e-16)
    assert np.isnan(sin_cos(np.nan)).all()
