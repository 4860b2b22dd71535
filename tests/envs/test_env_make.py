"""Choosing how to batch, seeding, and the sentences of what does not go."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, draw_actions, exit_with_parent
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.envs.registration import EnvSpec

from fastac.config import EnvConfig
from fastac.contract import EnvFailure, VecEnv
from fastac.envs import adapt, make, make_vec, trial
from fastac.envs.process import ProcessEnvs
from fastac.envs.sync import SyncEnvs

PROBES = "probes:fastac/"


def build(env_id: str, seed: int = 0, num_envs: int = 4, vectorization: str = "auto") -> VecEnv:
    return make_vec(EnvConfig(env_id, num_envs, vectorization), np.random.SeedSequence(seed))


@pytest.fixture
def own_batch(monkeypatch: pytest.MonkeyPatch) -> str:
    """An id with a batched version of its own, and none that is compiled."""
    spec = EnvSpec("Balance-v0", CartPoleEnv, vector_entry_point=CartPoleVectorEnv, max_episode_steps=500)
    monkeypatch.setitem(gym.registry, "Balance-v0", spec)
    return spec.id


def test_a_batch_of_its_own_is_native(own_batch: str) -> None:
    env = build(own_batch, num_envs=6)
    assert env.description == "native (CartPoleVectorEnv)"
    assert (env.num_envs, env.frame_skip) == (6, 1)
    env.close()


@pytest.mark.parametrize(("vectorization", "is_native"), [("auto", False), ("sync", False), ("native", True)])
def test_a_few_envs_are_a_batch_only_where_that_is_said(own_batch: str, vectorization: str, is_native: bool) -> None:
    for num_envs in (1, 5):
        env = build(own_batch, num_envs=num_envs, vectorization=vectorization)
        assert isinstance(env, SyncEnvs) != is_native
        assert (env.description == "native (CartPoleVectorEnv)") == is_native
        env.close()


def test_num_envs_can_be_overridden() -> None:
    assert make_vec(EnvConfig(num_envs=4), np.random.SeedSequence(0), num_envs=7).num_envs == 7


def test_cheap_env_is_sync_and_says_why() -> None:
    env = build("FrozenLake-v1")
    assert isinstance(env, SyncEnvs)
    assert env.description.startswith("sync (one step of FrozenLake-v1 takes ")
    env.close()


@pytest.mark.parametrize(
    ("cores", "num_envs", "kind", "why"),
    [
        (2, 4, ProcessEnvs, "process (one step of FrozenLake-v1 takes 812 us, 2 workers)"),
        (1, 4, SyncEnvs, "sync (one core)"),
        (2, 1, SyncEnvs, "sync (one env)"),
    ],
)
def test_dear_env_goes_to_processes(
    monkeypatch: pytest.MonkeyPatch, cores: int, num_envs: int, kind: type, why: str
) -> None:
    monkeypatch.setattr(trial, "measure_step_us", lambda env_id, trial: 812.3)
    monkeypatch.setattr(make, "count_cores", lambda: cores)
    env = build("FrozenLake-v1", num_envs=num_envs)
    assert isinstance(env, kind)
    assert env.description == f"{why}, observations flattened to 16 numbers"
    env.close()


def test_dear_env_that_cannot_be_sent_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "measure_step_us", lambda env_id, trial: 812.3)
    monkeypatch.setattr(make, "count_cores", lambda: 2)
    monkeypatch.setitem(gym.registry, "Local-v0", gym.envs.registration.EnvSpec("Local-v0", lambda: None))
    gym.registry["Local-v0"].entry_point = lambda: gym.make("MountainCar-v0").unwrapped
    assert isinstance(build("Local-v0"), SyncEnvs)
    with pytest.raises(ValueError, match="cannot send the environment to its workers"):
        build("Local-v0", vectorization="process")


def test_native_without_batched_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'native' but Acrobot-v1 has no batched version"):
        build("Acrobot-v1", vectorization="native")


def test_render_mode_gives_frames() -> None:
    env = make_vec(EnvConfig(num_envs=2), np.random.SeedSequence(0), render_mode="rgb_array")
    assert isinstance(env, SyncEnvs)
    begin(env)
    frames = env.render()
    assert len(frames) == 2 and frames[0].ndim == 3 and frames[0].dtype == np.uint8
    env.close()


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("CartPole", "did you mean CartPole-v"),
        ("zzzzzz", "expected a registered id, module:id or module:function"),
        ("no_such_module:X-v0", "'no_such_module' cannot be imported"),
    ],
)
def test_ids_that_do_not_go(env_id: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(env_id)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(env_id: str) -> gym.Env:
        raise gym.error.DependencyNotInstalled("Box2D is not installed")

    monkeypatch.setattr(gym, "make", refuse)
    with pytest.raises(ValueError, match=r"LunarLander-v3 needs a package .*pip install 'gymnasium\[box2d\]'"):
        build("LunarLander-v3")


def test_warnings_of_gymnasium_are_neither_caused_nor_hidden() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("Pendulum-v1").close()
    with pytest.warns(DeprecationWarning, match="out of date"):
        build("CartPole-v0", vectorization="sync").close()


@pytest.mark.parametrize(
    "name",
    ["ConstantReward", "ObsReward", "DelayedReward", "ActionReward", "ObsActionReward", "ContinuousReward",
     "MultiDiscreteReward", "MultiBinaryReward", "DictReward", "ToyChain", "Memory", "ShortLong"],
)  # fmt: skip
def test_probes_run(name: str) -> None:
    env = build(f"{PROBES}{name}-v0", vectorization="sync")
    begin(env)
    trace = exit_with_parent(env, draw_actions(env, 120))
    assert (trace.terminated | trace.truncated).any()
    assert np.isfinite(trace.reward).all() and np.abs(trace.obs).max() < 1e5
    env.close()


def first_obs(seed: int, vectorization: str, num_envs: int = 16) -> set[bytes]:
    env = build("CartPole-v1", seed, num_envs, vectorization)
    obs = begin(env)
    env.close()
    assert len({each.tobytes() for each in obs}) == num_envs, "each env has its own stream"
    return {each.tobytes() for each in obs}


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_seeds_share_no_stream(vectorization: str) -> None:
    assert first_obs(0, vectorization) == first_obs(0, vectorization)
    assert not first_obs(0, vectorization) & first_obs(1, vectorization)


def test_given_env_shares_no_stream() -> None:
    def first(seed: int) -> np.ndarray:
        env = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 4, copy=False)
        return begin(adapt(env, np.random.SeedSequence(seed)))

    np.testing.assert_array_equal(first(0), first(0))
    assert not np.isin(first(0), first(1)).any()


def test_later_resets_go_on_with_the_streams() -> None:
    for vectorization in ("native", "sync"):
        env = build("CartPole-v1", vectorization=vectorization)
        assert not np.isin(begin(env), begin(env)).any()
        env.close()


def test_sync_is_gymnasiums_sync() -> None:
    """The same seeds in Gymnasium's own SyncVectorEnv give the same rows."""
    seeds = [3, 1, 4, 1]
    ours = SyncEnvs(lambda: gym.make("CartPole-v1"), seeds, "")
    theirs = adapt(gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 4), np.random.SeedSequence(0))
    theirs._seed, theirs._first_obs = seeds, None
    np.testing.assert_array_equal(begin(ours), begin(theirs))
    actions = draw_actions(ours, 150)
    trace = exit_with_parent(ours, actions)
    trace.assert_equal(exit_with_parent(theirs, actions))
    assert trace.terminated.sum() > 8


def test_time_outs_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(make, "ProcessEnvs", lambda *args: asked.append(args[-2:]))
    for settings in ({}, {"start_timeout_s": 300.0, "env_timeout_s": 90.0}):
        make_vec(EnvConfig("MountainCar-v0", 2, "process", **settings), np.random.SeedSequence(0))
    assert asked == [(120.0, 120.0), (300.0, 90.0)]


def test_an_environment_that_takes_longer_to_start_is_given_up() -> None:
    config = EnvConfig("MountainCar-v0", 2, "process", start_timeout_s=1e-3)
    with pytest.raises(
        EnvFailure, match=r"the worker of envs \d to \d gave no answer for 0.001 s \(raise start_timeout_s if"
    ):
        make_vec(config, np.random.SeedSequence(0))
