"""EnvPool's environments by id: rows like Gymnasium's with any number of threads; differences are told or refused."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, draw_actions, exit_with_parent, make_row
from run_support import SMALL

import fastac
from fastac.build import resolve_workers, shard_config
from fastac.cli import main
from fastac.config import Config, EnvConfig
from fastac.contract import VecEnv
from fastac.envs import make_single, make_vec, offered_vectorizations, pool

envpool = pytest.importorskip("envpool")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What was found out about an id is forgotten: some tests change it."""
    yield
    pool._is_slow.cache_clear(), pool._find_counterpart.cache_clear()


def build(env_id: str = "CartPole-v1", seed: int = 0, threads: int | None = 1, **kwargs: object) -> VecEnv:
    config = EnvConfig(env_id, 3, "envpool", env_threads=threads, env_kwargs=kwargs)
    return make_vec(config, np.random.SeedSequence(seed))


# --- the time contract -------------------------------------------------------------------------------


def put(env: gym.Env, obs: np.ndarray) -> gym.Env:
    """Put Gymnasium's environment into the state that an observation tells."""
    env.reset()
    is_pendulum = env.spec.id == "Pendulum-v1"
    env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]]) if is_pendulum else obs.astype(np.float64)
    return env


@pytest.mark.parametrize(("env_id", "limit"), [("CartPole-v1", 500), ("CartPole-v1", 15), ("Pendulum-v1", 20)])
def test_rows_obey_the_contract_with_gymnasiums_steps(env_id: str, limit: int) -> None:
    single = gym.make(env_id, disable_env_checker=True).unwrapped
    with closing(build(env_id, max_episode_steps=limit)) as envs:
        assert envs.max_episode_steps == limit
        assert len(envs.cautions) == (env_id == "Pendulum-v1")  # which is tested where the speed is not clipped
        obs, row = begin(envs).copy(), make_row(envs)
        done, steps, ends = np.zeros(3, np.bool_), np.zeros(3, np.int64), np.zeros(2, np.int64)
        for action in draw_actions(envs, 200):
            assert envs.step(action, row) is None and envs.extras == {}
            assert (row.valid == ~done).all() and (row.start == done).all()
            steps = np.where(done, 0, steps + 1)
            for k in range(3):
                if done[k]:  # the reset row: no reward and no flags, and the next episode's first observation
                    assert (row.reward[k], row.terminated[k], row.truncated[k]) == (0.0, False, False)
                    assert put(single, row.obs[k]).observation_space.contains(row.obs[k])
                    assert env_id == "Pendulum-v1" or (abs(row.obs[k]) <= 0.05).all()
                    continue
                taken = np.clip(action[k], -2, 2) if env_id == "Pendulum-v1" else int(action[k])
                expected, reward, terminated, _, _ = put(single, obs[k]).step(taken)
                if env_id == "Pendulum-v1" and abs(expected[2]) == 8.0:
                    np.testing.assert_allclose(row.obs[k], expected, atol=0.05)
                    expected = row.obs[k]
                np.testing.assert_allclose(row.obs[k], expected, rtol=1e-4, atol=1e-5)  # the final one too
                np.testing.assert_allclose(row.reward[k], reward, rtol=1e-4, atol=1e-5)
                is_last = steps[k] == limit  # at which EnvPool does not tell whether the episode ended by itself, too
                assert (row.terminated[k], row.truncated[k]) == (terminated and not is_last, is_last)
            done, obs = row.terminated | row.truncated, row.obs.copy()
            ends += row.terminated.sum(), row.truncated.sum()
    assert (ends[0] > 5) == (env_id == "CartPole-v1") and (ends[1] > 5) == (limit < 500)


def test_the_seed_decides_and_the_threads_do_not() -> None:
    def play(seed: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        with closing(build("LunarLander-v3", seed, threads)) as envs:
            assert envs.description.startswith(f"envpool, {threads} thread")
            first = begin(envs)
            trace = exit_with_parent(envs, draw_actions(envs, 150))
            assert trace.terminated.any()
            return first, trace

    first, trace = play(1, threads=1)
    again = play(1, threads=3)
    np.testing.assert_array_equal(first, again[0])
    trace.assert_equal(again[1])
    other = play(2, threads=1)[0]
    assert len({row.tobytes() for row in [*first, *other]}) == 6


# --- threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cost_us", "threads"), [(10.0, 1), (20.0, 3), (200.0, 3)])
def test_slow_environments_have_a_thread_per_core(
    monkeypatch: pytest.MonkeyPatch, cost_us: float, threads: int
) -> None:
    monkeypatch.setattr(pool, "count_cores", lambda: 8)
    monkeypatch.setattr(pool, "_time_step_us", lambda name, kwargs, num_envs: cost_us * num_envs)
    with closing(build(threads=None)) as envs:  # of three environments
        assert envs.description == f"envpool, {threads} thread{'s' * (threads > 1)} (CartPoleGymnasiumEnvPool)"


def test_a_step_of_the_trial_takes_time() -> None:
    assert 1.0 < pool._time_step_us("Pendulum-v1", {}, 2) < 1e6


def test_workers_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastac.build.shares.count_cores", lambda: 9)
    config = Config().replace(vectorization="envpool", num_envs=16, workers=4)
    share = shard_config(config, None).env
    assert (share.num_envs, share.env_threads, share.vectorization) == (4, 2, "envpool")
    assert shard_config(config.replace(env_threads=3), None).env.env_threads == 3
    assert shard_config(config.replace(workers=1), None).env.env_threads is None


@pytest.mark.parametrize(("env_id", "shards", "workers"), [("CartPole-v1", 1, 1), ("LunarLander-v3", 2, 2)])
def test_slow_environments_have_more_shards_and_workers_whatever_a_step_costs_here(
    monkeypatch: pytest.MonkeyPatch, env_id: str, shards: int, workers: int
) -> None:
    monkeypatch.setattr("fastac.build.shares.count_physical_cores", lambda: 4)
    monkeypatch.setattr(pool, "_time_step_us", lambda *_: pytest.fail("shards must not depend on times"))
    found = resolve_workers(Config().replace(env_id=env_id, vectorization="envpool", num_envs=16)).run
    assert (found.shards, found.workers) == (shards, workers)


def test_threads_are_only_for_what_has_them() -> None:
    with pytest.raises(ValueError, match=r"env_threads is 2, .* is no Atari game of ALE/, and vectorization is 'auto'"):
        EnvConfig(env_threads=2)
    with pytest.raises(ValueError, match="env_threads is 0, expected from 1 to 1024, or None"):
        EnvConfig(vectorization="envpool", env_threads=0)


# --- differences -------------------------------------------------------------------------------------


def test_spaces_are_gymnasiums_so_that_a_policy_fits_both() -> None:
    single = gym.make("LunarLander-v3")
    with closing(build("LunarLander-v3")) as envs:
        assert envs.single_observation_space == single.observation_space  # EnvPool's have other bounds
        assert envs.single_action_space == single.action_space
    with closing(build("Pong-v5")) as envs:  # which Gymnasium does not have
        assert envs.single_observation_space.shape == (4, 84, 84) and envs.max_episode_steps == 27_000


def test_robots_take_the_actions_that_gymnasiums_take() -> None:
    pytest.importorskip("mujoco")
    single = gym.make("HalfCheetah-v5").unwrapped
    with closing(build("HalfCheetah-v5")) as envs:
        assert envs.single_action_space == single.action_space  # float32; EnvPool's are float64
        obs, row = begin(envs).copy(), make_row(envs)
        for action in draw_actions(envs, 20):
            envs.step(action, row)
            for k in range(3):
                single.reset()
                single.set_state(np.concatenate([[0.0], obs[k, :8]]), obs[k, 8:])
                single.data.qacc_warmstart[:] = 0.0
                expected, reward, *_ = single.step(np.clip(action[k], -1, 1))
                np.testing.assert_allclose(row.obs[k], expected, rtol=1e-6, atol=1e-8)
                np.testing.assert_allclose(row.reward[k], reward, atol=1e-5)
            obs = row.obs.copy()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "says"),
    [
        ("Taxi-v4", {}, "'envpool' but EnvPool has no Taxi-v4: use Taxi-v3, which may differ, or vectorization auto"),
        ("CartPol-v1", {}, "EnvPool has no CartPol-v1: use .*CartPole-v1, which may differ, or vectorization auto"),
        *(
            (env_id, {}, f"^vectorization is 'envpool' but EnvPool has no {env_id}: use vectorization auto.$")
            for env_id in (
                "probes:fastac/Two-v0",
                "Foo-v1",
                "nothere:Thing-v0",
                "run_envs:Opaque-v0",
                "Robot-v0",
                "Odd",
            )
        ),
        ("Blackjack-v1", {}, r"EnvPool's Blackjack-v1 has the observation space Box\(.*, and Gymnasium's has Tuple\("),
        ("LunarLander-v3", {"gravity": -5.0}, r"\{'gravity': -5.0\}, which EnvPool's LunarLander-v3 refuses .*gravity"),
        ("CartPole-v1", {"num_threads": 2}, "'num_threads', which fastac gives to EnvPool: give --env-threads"),
        ("CartPole-v1", {"batch_size": 2}, "'batch_size', which fastac gives to EnvPool: leave it out"),
        ("CartPole-v1", {"max_episode_steps": -1}, "max_episode_steps -1, expected at least 1 with EnvPool"),
    ],
)
def test_what_is_not_the_same_there_is_refused(env_id: str, kwargs: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(env_id, **kwargs)


def test_a_game_of_ale_is_another_game() -> None:
    with pytest.raises(ValueError, match="EnvPool's games have other ids, and other settings, such as Pong-v5"):
        EnvConfig("ALE/Pong-v5", vectorization="envpool")


def test_another_time_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(gym.spec("CartPole-v1"), max_episode_steps=77)
    monkeypatch.setitem(gym.registry, "CartPole-v1", spec)
    with closing(build()) as envs:
        assert envs.cautions == (
            "the time limit of EnvPool's CartPole-v1 is 500 steps, that of Gymnasium's is 77 steps",
        )
    with closing(build("CliffWalking-v1")) as envs:  # which EnvPool says has a limit of 2**31 - 1
        assert envs.cautions == () and envs.max_episode_steps is None


def test_somebody_elses_environment_of_the_id_is_told() -> None:
    with closing(build("probes:CartPole-v1")) as envs:
        assert envs.cautions == ("the environments are EnvPool's own CartPole-v1, not that of probes",)


def test_without_what_gymnasium_needs_it_runs_with_its_own_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    with closing(build("LunarLander-v3")) as envs:
        assert envs.single_observation_space.shape == (8,) and envs.single_observation_space.low[0] > -1.0


def test_without_envpool_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ValueError, match=r"'envpool', which needs a package .*: pip install 'envpool>=1.2'\."):
        build()


def test_it_is_offered_for_the_ids_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered_vectorizations(EnvConfig("CartPole-v1")) == ("compiled", "native", "sync", "process", "envpool")
    assert offered_vectorizations(EnvConfig("LunarLander-v3")) == ("sync", "process", "envpool")
    assert offered_vectorizations(EnvConfig("probes:fastac/Memory-v0")) == ("sync", "process")
    assert offered_vectorizations(EnvConfig("CartPole-v1", vectorization="sync")) == ("sync",)
    assert offered_vectorizations(EnvConfig("ALE/Pong-v5")) == ("native",)
    monkeypatch.setattr(pool, "find_spec", lambda name: None)
    assert offered_vectorizations(EnvConfig("LunarLander-v3")) == ("sync", "process")


# --- runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env_id", "algo", "workers"), [("CartPole-v1", "a2c", 2), ("Pendulum-v1", "ppo", 1)])
def test_two_runs_of_a_seed_are_the_same(tmp_path: Path, env_id: str, algo: str, workers: int) -> None:
    settings = SMALL | {"vectorization": "envpool", "workers": workers, "total_env_steps": 256, "eval_every": 128}
    one, two = (fastac.train(env_id, algo, run_dir=tmp_path / name, **settings).summary for name in ("one", "two"))
    assert str(one["vectorization"]).startswith("envpool, ")
    for told in ("eval_mean_return", "last_eval_mean_return", "episodes"):
        assert one[told] is not None and one[told] == two[told], told


def test_a_resumed_run_says_that_its_episodes_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = SMALL | {"vectorization": "envpool", "total_env_steps": 64, "run_dir": tmp_path / "run"}
    fastac.train("CartPole-v1", "a2c", **settings)
    with caplog.at_level(logging.INFO, "fastac"):
        run = fastac.complete(fastac.resume(tmp_path / "run", total_env_steps=128))
    assert run.summary["env_steps"] >= 128
    assert "the state of the environments is not in the checkpoint: their episodes begin anew" in caplog.text


def test_an_id_that_only_envpool_has_trains_from_the_command_line(tmp_path: Path) -> None:
    words = ["train", "MiniGrid-Empty-5x5-v0", "--vectorization", "envpool", "--num-envs", "4", "--num-steps", "8"]
    words += ["--total-env-steps", "64", "--eval-every", "0", "--no-tensorboard", "--env-threads", "1"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    assert fastac.load(tmp_path / "run").policy.observation_space["image"].shape == (7, 7, 3)


def test_films_are_of_gymnasiums_environment() -> None:
    with closing(make_single(EnvConfig(vectorization="envpool", env_threads=2), "rgb_array")) as env:
        assert env.render_mode == "rgb_array"
    with pytest.raises(ValueError, match="only a single one can be rendered"):
        make_vec(EnvConfig(vectorization="envpool"), np.random.SeedSequence(0), render_mode="rgb_array")


# --- functions that build EnvPool's ------------------------------------------------------------------


def make_cartpoles(num_envs: int, seed: int, **kwargs: object) -> gym.vector.VectorEnv:
    return envpool.make_gymnasium("CartPole-v1", num_envs=num_envs, seed=seed, num_threads=1, **kwargs)


def test_a_function_that_builds_a_pool_gives_the_rows_of_the_id() -> None:
    seed = np.random.SeedSequence(4)
    with closing(build(seed=4)) as own, closing(make_vec(EnvConfig("f", 3), seed, given=make_cartpoles)) as given:
        assert given.description == "given (CartPoleGymnasiumEnvPool)" and given.cautions == ()
        np.testing.assert_array_equal(begin(own), begin(given))
        actions = draw_actions(own, 100)
        exit_with_parent(own, actions).assert_equal(exit_with_parent(given, actions))


def test_a_function_that_builds_a_pool_trains(tmp_path: Path) -> None:
    settings = SMALL | {"total_env_steps": 128, "env_kwargs": {"max_episode_steps": 9}}
    run = fastac.train(make_cartpoles, "ppo", run_dir=tmp_path / "run", num_minibatches=2, **settings)
    assert run.summary["vectorization"] == "given (CartPoleGymnasiumEnvPool)"
    assert 0.0 < run.summary["eval_mean_return"] <= 9.0
