"""The Python face: train, start and finish, resume, load, evaluate, and what the user may bring."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from run_envs import make_next_step, make_same_step
from run_support import SMALL, read_records, read_state
from torch import nn

import fastac
from fastac.models import MLPEncoder


def test_train_returns_a_run_that_acts(tmp_path):
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320)
    assert run.config.env.num_envs == 4
    assert run.policy.act(np.zeros(4, np.float32)) in (0, 1)
    loaded = fastac.load(run.directory)
    assert loaded.config == run.config
    assert loaded.summary == run.summary
    observations = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    assert loaded.policy.act(observations).shape == (64,)
    assert (loaded.policy.act(observations) == run.policy.act(observations)).all()


VERBOSE = """
import fastac
settings = {"num_envs": 4, "num_steps": 8, "eval_episodes": 2, "tensorboard": False, "total_env_steps": 320}
fastac.train("CartPole-v1", run_dir="loud", verbose=True, **settings)
fastac.train("CartPole-v1", run_dir="quiet", **settings)
"""


def test_a_verbose_run_shows_the_log_and_its_evaluations_and_no_other_does(tmp_path):
    done = subprocess.run([sys.executable, "-c", VERBOSE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr.startswith("a2c on CartPole-v1: 4 envs x 8 steps")
    assert "run directory loud" in done.stderr and "evaluation" in done.stderr
    assert "quiet" not in done.stderr


def test_the_first_line_names_the_arguments_of_the_environment(tmp_path, caplog):
    caplog.set_level("INFO", logger="fastac")
    settings = {"num_envs": 2, "num_steps": 4, "tensorboard": False}
    fastac.start("Pendulum-v1", run_dir=tmp_path / "run", env_kwargs={"g": 9.0}, **settings).close()
    assert "a2c on Pendulum-v1 (g=9.0): 2 envs x 4 steps" in caplog.text


def test_the_loop_is_the_callers(tmp_path):
    session = fastac.start("CartPole-v1", algo="ppo", run_dir=tmp_path / "run", **SMALL, total_env_steps=10**9)
    for report in session:
        assert report is session.report
        assert session.tracker.sps > 0
        if report.iteration == 5:
            break
    run = fastac.finish(session)
    assert run.summary["env_steps"] == report.env_steps
    assert session.finish() is run.summary  # a second time changes nothing


def test_a_loop_that_was_left_can_be_entered_again(tmp_path):
    fastac.train("CartPole-v1", run_dir=tmp_path / "whole", **SMALL, total_env_steps=320)
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320)
    for _ in session:
        break
    for _ in session:
        pass
    fastac.finish(session)
    assert read_state(tmp_path / "run") == read_state(tmp_path / "whole")


def test_evaluate_plays_raw_episodes(tmp_path):
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    result = fastac.evaluate(run, episodes=7, seed=5)
    assert result.returns.shape == result.lengths.shape == (7,)
    assert (result.returns == result.lengths).all()  # CartPole pays 1 a step
    assert (fastac.evaluate(fastac.load(run.directory), episodes=7, seed=5).returns == result.returns).all()
    assert (fastac.evaluate(run, episodes=7, seed=6).returns != result.returns).any()
    with pytest.raises(ValueError, match="episodes is 0"):
        fastac.evaluate(run, episodes=0)


def test_an_id_may_name_its_module(tmp_path):
    run = fastac.train("run_envs:Opaque-v0", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    assert run.summary["env_id"] == "run_envs:Opaque-v0"
    assert fastac.evaluate(fastac.load(run.directory), episodes=3).mean_length == 10


@pytest.mark.parametrize("make", [make_next_step, make_same_step])
def test_envs_of_the_users_own(tmp_path, make):
    run = fastac.train(make, run_dir=tmp_path / "run", **SMALL, total_env_steps=640)
    assert run.summary["env_id"] == f"run_envs:{make.__name__}"
    assert run.summary["vectorization"] == "given (SyncVectorEnv)"
    assert run.summary["episodes"] > 0
    assert fastac.evaluate(run, episodes=3, env=make).returns.shape == (3,)


def test_the_autoreset_mode_changes_no_episode(tmp_path):
    """Both train on the same streams; only the order of rows differs."""
    for make in (make_next_step, make_same_step):
        fastac.train(make, run_dir=tmp_path / make.__name__, **SMALL, total_env_steps=32)
    next_step, same_step = (read_records(tmp_path / make.__name__)[1][0] for make in (make_next_step, make_same_step))
    assert next_step["episodes"] == same_step["episodes"]
    assert next_step["mean_return"] == same_step["mean_return"]


def test_a_factory_that_returns_too_few(tmp_path):
    with pytest.raises(ValueError, match="returned 3 envs, expected num_envs = 4"):
        fastac.start(lambda num_envs: make_next_step(min(num_envs, 3)), run_dir=tmp_path / "run", **SMALL)


def test_an_encoder_of_the_users_own(tmp_path):
    built = []

    def make_encoder(space):
        built.append(nn.Sequential(nn.Linear(space.shape[0], 6), nn.Tanh()))
        return built[-1]

    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", encoder=make_encoder, **SMALL, total_env_steps=64)
    assert any(isinstance(module, nn.Linear) and module.out_features == 6 for module in run.policy.model.modules())
    assert fastac.load(run.directory, encoder=make_encoder).policy.act(np.zeros(4)) in (0, 1)
    with pytest.raises(ValueError, match=r"the encoder maps \[2, 4\] to \[1, 2\], expected \[2, D\]"):
        fastac.start("CartPole-v1", run_dir=tmp_path / "no", encoder=lambda _: Sum(), **SMALL)


def linear(space):
    return nn.Linear(space.shape[0], 5)


@pytest.mark.parametrize(("algo", "name"), [("a2c", "nature"), ("a3c", "minatar")])
def test_an_encoders_name_wins_over_the_presets(monkeypatch, algo, name):
    monkeypatch.setattr("fastac.api.start_config", lambda config, _, __, encoder, *___, held: (config, encoder))
    assert fastac.start("ALE/Pong-v5", algo)[0].model.encoder == "a3c"
    config, factory = fastac.start("ALE/Pong-v5", algo, encoder=name)
    assert (config.model.encoder, factory) == (name, None)


def test_an_encoders_name_is_the_setting(tmp_path):
    run = fastac.train("CartPole-v1", encoder="mlp", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    assert run.config.model.encoder == "mlp"
    assert fastac.load(run.directory, encoder="mlp").config == run.config
    resumed = fastac.resume(run.directory, encoder="mlp", total_env_steps=128)
    for _ in resumed:
        pass
    assert fastac.finish(resumed).summary["env_steps"] >= 128


def test_an_encoders_name_that_does_not_fit(tmp_path):
    for begin in (fastac.train, fastac.start):
        with pytest.raises(
            ValueError,
            match=r"^encoder is 'natur', expected one of auto, mlp, nature, a3c, minatar, or module:function\.$",
        ):
            begin("ALE/Pong-v5", encoder="natur", run_dir=tmp_path / "run")
        with pytest.raises(ValueError, match=r"^encoder is 'a3c', expected 'mlp' or 'auto': observations are vectors"):
            begin("CartPole-v1", encoder="a3c", run_dir=tmp_path / "run", **SMALL)
        with pytest.raises(
            ValueError, match=r"^encoder is 5, expected a name, or a function that returns an nn\.Module"
        ):
            begin("CartPole-v1", encoder=5, run_dir=tmp_path / "run", **SMALL)
    assert list(tmp_path.iterdir()) == []
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", encoder=linear, **SMALL, total_env_steps=64)
    says = r"^encoder is 'mlp', expected 'test_run_python:linear', as the run has it: leave it out\.$"
    with pytest.raises(ValueError, match=says):
        fastac.load(run.directory, encoder="mlp")
    with pytest.raises(ValueError, match=says):
        fastac.resume(run.directory, encoder="mlp", total_env_steps=10_000)


class Sum(nn.Module):
    def forward(self, obs):
        return obs.sum(-1)[None]


def test_an_encoder_like_the_built_one_trains_like_it(tmp_path):
    def make_encoder(space):
        return MLPEncoder(space.shape[0], (8,), "tanh")

    fastac.train("CartPole-v1", run_dir=tmp_path / "own", encoder=make_encoder, **SMALL, total_env_steps=320)
    fastac.train("CartPole-v1", run_dir=tmp_path / "built", **SMALL, total_env_steps=320, activation="tanh")
    assert read_state(tmp_path / "own")[0] == read_state(tmp_path / "built")[0]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_seed_decides(tmp_path, env):
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(states))  # the global streams do not matter
        np.random.seed(len(states))
        settings = {**SMALL, "num_epochs": 2, "num_minibatches": 2, "total_env_steps": 160, "seed": seed}
        fastac.train(env, algo="ppo", run_dir=tmp_path / name, **settings)
        states.append(read_state(tmp_path / name))
    assert states[0] == states[1]
    assert states[0][0] != states[2][0]


def test_training_leaves_torchs_stream_as_it_was(tmp_path):
    stream = torch.get_rng_state()
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    assert bool((torch.get_rng_state() == stream).all())


@pytest.mark.parametrize("settings", [{"total_env_steps": 64.0}, {"hidden_sizes": [8]}, {"learning_rate": 1}])
def test_settings_of_a_kind_that_fits(tmp_path, settings):
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", **{**SMALL, "total_env_steps": 64, **settings})
    assert fastac.load(run.directory).config == run.config
    assert type(run.config.run.total_env_steps) is int
    assert run.config.model.hidden_sizes == (8,)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_envs": "8"}, "num_envs is '8', expected a whole number"),
        ({"num_envs": 2.5}, "num_envs is 2.5, expected a whole number"),
        ({"num_envs": True}, "num_envs is True, expected a whole number"),
        ({"hidden_sizes": 64}, "hidden_sizes is 64"),
        ({"gamma": "high"}, "gamma is 'high', expected a number"),
        ({"seed": None}, "seed is None, expected a whole number"),
    ],
)
def test_settings_of_another_kind(tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        fastac.start("CartPole-v1", run_dir=tmp_path / "run", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{}, {"baseline": False}])
def test_reinforce_takes_whole_episodes(tmp_path, settings):
    settings = {"num_envs": 2, "num_steps": 500, "total_env_steps": 200, "eval_episodes": 2, **settings}
    session = fastac.start("CartPole-v1", algo="reinforce", run_dir=tmp_path / "run", **settings)
    for report in session:
        assert len(report.finished) == 2  # one in each env
        assert report.updates == report.iteration
    run = fastac.finish(session)
    assert run.config.algo.collect == "episodes"
    assert run.summary["updates"] >= 2
    assert run.summary["env_steps"] >= 200


def test_the_lectures_preset(tmp_path):
    session = fastac.start("CartPole-v1", preset="lecture", run_dir=tmp_path / "run", total_env_steps=100)
    lengths = [report.finished[0].length for report in session]
    run = fastac.finish(session)
    assert sum(lengths) == run.summary["env_steps"]
    assert run.summary["updates"] == run.summary["episodes"] == len(lengths)
    assert (run.config.env.num_envs, run.config.algo.gae_lambda) == (1, 1.0)
