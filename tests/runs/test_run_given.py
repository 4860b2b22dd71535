"""Environments and encoders of the user's own, from Python and from the command line, and what is recorded of them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import run_envs
from gymnasium.wrappers import vector as vector_wrappers
from run_envs import Leveled, Opaque, make_level_two, make_leveled, make_next_step
from run_support import SMALL, SMALL_FLAGS
from torch import nn

import fastac
from fastac.cli import main
from fastac.config import Config

SHORT = {**SMALL, "total_env_steps": 64}
LEVEL = 10.0  # an episode's return per level


def train(env: object, run_dir: object, **settings: object) -> fastac.Run:
    return fastac.train(env, run_dir=run_dir, **{**SHORT, **settings})


def make_encoder(space: object) -> nn.Module:
    return nn.Sequential(nn.Linear(space.shape[0], 6), nn.Tanh())


def make_misfit(space: object) -> nn.Module:
    return nn.Linear(7, 6)


BUILT = nn.Linear(1, 6)


@pytest.mark.parametrize(
    ("env", "kwargs", "recorded", "level"),
    [
        (Leveled, {"level": 3}, "run_envs:Leveled", 3),
        (make_leveled, {"level": 4}, "run_envs:make_leveled", 4),
        (make_level_two, {}, "run_envs:make_level_two", 2),
        ("run_envs:make_level_two", {}, "run_envs:make_level_two", 2),
    ],
)
def test_a_run_begun_in_python_goes_on_from_the_command_line(tmp_path, capsys, env, kwargs, recorded, level):
    run_dir = tmp_path / "run"
    run = train(env, run_dir, env_kwargs=kwargs, encoder=make_encoder)
    assert run.summary["mean_return"] == LEVEL * level
    written = json.loads((run_dir / "config.json").read_text())
    assert (written["env"]["env_id"], written["env"]["env_kwargs"]) == (recorded, kwargs)
    assert written["model"]["encoder"] == "test_run_given:make_encoder"
    assert main(["eval", str(run_dir), "--episodes", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_return"] == LEVEL * level
    if env is Leveled:
        assert main(["record", str(run_dir)]) == 0
        assert (run_dir / "episode.gif").stat().st_size > 0
    assert main(["resume", str(run_dir), "--total-env-steps", "128"]) == 0


@pytest.mark.parametrize("words", ['{"level": 5}', "level=5"])
def test_the_command_line_takes_classes_arguments_and_encoders(tmp_path, words):
    flags = ["--env-kwargs", words, "--encoder", "test_run_given:make_encoder", "--total-env-steps", "64"]
    run_dir = tmp_path / "run"
    assert main(["train", "run_envs:Leveled", *SMALL_FLAGS, *flags, "--run-dir", str(run_dir)]) == 0
    run = fastac.load(run_dir)
    assert run.config.env.env_kwargs == {"level": 5}
    assert isinstance(run.policy.model.trunks[0].encoder, nn.Sequential)
    assert run.summary["mean_return"] == LEVEL * 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--env-kwargs {level}", "--env-kwargs: '{level}' is not JSON"),
        ("--env-kwargs level", "--env-kwargs: 'level' is neither JSON such as"),
        ("--env-kwargs render_mode=human", "expected none of render_mode, which fastac gives"),
        ("--env-kwargs lvel=3", "could not be built (TypeError"),
        ("--encoder test_run_given:make_encodr", "'test_run_given' has no 'make_encodr': did you mean make_encoder"),
        (
            "--encoder test_run_given:make_misfit",
            "make_misfit failed for observations of shape (1,)",
        ),
        ("--encoder test_run_given:BUILT", "encoder is a Linear that was built already"),
        ("--encoder cnn", "encoder is 'cnn', expected one of auto, mlp, nature, a3c, minatar, or module:function"),
    ],
)
def test_words_that_do_not_fit(tmp_path, capsys, words, says):
    name, word = words.split()
    level = [] if name == "--env-kwargs" else ["--env-kwargs", "level=1"]
    run_dir = tmp_path / "run"
    assert main(["train", "run_envs:Leveled", *SMALL_FLAGS, *level, name, word, "--run-dir", str(run_dir)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and says in err[0]
    assert not run_dir.exists()


def test_a_policy_is_loaded_without_its_environment(tmp_path, capsys):
    run = train(lambda: Leveled(1), tmp_path / "run", env_kwargs={})
    assert run.config.env.env_id == "<test_run_given:test_a_policy_is_loaded_without_its_environment.locals.lambda>"
    before = Leveled.now
    loaded = fastac.load(run.directory)
    assert Leveled.now == before
    assert loaded.policy.act(np.zeros(1)) in (0, 1)
    with pytest.raises(
        ValueError, match=r"was given in Python and cannot be imported: give it again there, as env=\.\.\."
    ):
        fastac.evaluate(loaded, 2)
    assert main(["eval", str(run.directory)]) == 2
    assert "was given in Python and cannot be imported" in capsys.readouterr().err
    assert fastac.evaluate(loaded, 2, env=make_level_two).mean_return == 2 * LEVEL
    session = fastac.resume(run.directory, env=lambda: Leveled(1), total_env_steps=128)
    assert [report.env_steps for report in session][-1] >= 128
    session.finish()


def test_a_spec_or_a_made_environment_is_an_id_with_arguments(tmp_path):
    run = train(gym.make("CartPole-v1", max_episode_steps=15), tmp_path / "run", num_envs=6)
    assert (run.config.env.env_id, run.config.env.env_kwargs) == ("CartPole-v1", {"max_episode_steps": 15})
    assert fastac.evaluate(fastac.load(run.directory), 12).lengths.max() <= 15


def test_no_more_environments_are_open_than_the_run_has(tmp_path):
    for number, settings in enumerate(
        ({"vectorization": "auto"}, {"vectorization": "sync"}, {"algo": "a3c", "workers": 1})
    ):
        Leveled.now = Leveled.most = 0
        settings = {**SHORT, "num_envs": 1, "env_kwargs": {"level": 1}, **settings}
        session = fastac.start(Leveled, run_dir=tmp_path / str(number), **settings)
        assert Leveled.most == 1, "of this process"
        if settings.get("algo") == "a3c":
            assert Leveled.now == 0, "a worker has the one that there may be"
        session.training.close()
        session._close()
        assert Leveled.now == 0


def test_going_on_in_another_kind_of_environment_begins_new_episodes_or_is_refused(tmp_path, caplog):
    run = train("CartPole-v1", tmp_path / "run", num_envs=6)
    with fastac.resume(run.directory, env=make_next_step, total_env_steps=128):
        assert "their episodes begin anew" in caplog.text  # the same spaces, but not compiled
    with pytest.raises(ValueError, match=r"observation space is Box\(-1.* \(1,\), float32\), expected Box\(\[-4\.8"):
        fastac.resume(run.directory, env=Opaque, total_env_steps=128)


def test_the_log_begins_with_what_one_would_not_expect(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastac")

    def make(num_envs):
        return vector_wrappers.NormalizeObservation(make_next_step(num_envs))

    train(make, tmp_path / "run", algo="ppo", num_minibatches=1)
    first, *others = [record.getMessage() for record in caplog.records]
    assert first == (
        "no preset for <test_run_given:test_the_log_begins_with_what_one_would_not_expect.locals.make> with ppo: "
        "untuned defaults (observations standardised by running statistics, rewards scaled by the running deviation "
        "of the return)"
    )
    assert len([line for line in others if line.startswith("NormalizeObservation keeps its statistics")]) == 1
    caplog.clear()
    train("CartPole-v1", tmp_path / "tuned")
    assert "untuned" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "num_steps"),
    [
        ({"total_env_steps": 600}, 9),
        ({"total_env_steps": 600, "num_minibatches": 64}, 12),
        ({"total_env_steps": 3}, 1),
        ({"total_env_steps": 2048}, 128),
        ({"total_env_steps": 600, "num_steps": 64}, 64),
        ({"total_env_steps": 600, "collect": "episodes", "num_minibatches": 1}, 128),
    ],
)
def test_a_rollout_is_no_longer_than_the_budget(monkeypatch, caplog, settings, num_steps):
    caplog.set_level(logging.INFO, "fastac")
    monkeypatch.setattr("fastac.api.start_config", lambda config, *_, held: config)
    config = fastac.start(Opaque, "ppo", **{"num_minibatches": 4, **settings})
    assert config.algo.num_steps == num_steps
    assert config.env.num_envs == 16
    is_said = "total_env_steps is 600, less than one rollout of 16 envs x" in caplog.text
    assert is_said == (settings["total_env_steps"] == 600 and "collect" not in settings)


def test_a_short_budget_is_about_what_is_played(tmp_path):
    run = fastac.train(Opaque, "ppo", run_dir=tmp_path / "run", total_env_steps=600, eval_every=0, eval_episodes=1)
    assert 600 <= run.summary["env_steps"] <= 750


SCRIPT = """
import sys, traceback, gymnasium as gym, fastac.envs.make, fastac
from run_envs import Opaque
fastac.envs.make.count_cores = lambda: 2
fastac.envs.trial.measure_step_us = lambda *_: 900.0
class Own(Opaque):
    pass
def train(env, name, **settings):
    try:
        run = fastac.train(env, run_dir=sys.argv[1] + name, num_envs=2, num_steps=8, total_env_steps=16, eval_every=0,
                           eval_episodes=1, tensorboard=False, **settings)
        print(name, "ran", run.summary["vectorization"], flush=True)
    except ValueError as error:
        print(name, "refused", error, flush=True)
        assert "During handling of the above" not in "".join(traceback.format_exception(error))
train("run_envs:Opaque-v0", "module")
train(Own, "auto")
train(Own, "asked", vectorization="process")
train(Own, "workers", workers=2)
train(Own, "a3c", algo="a3c", workers=2)
"""


def test_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(run_envs.__file__), *sys.path])}
    done = subprocess.run([sys.executable, script, f"{tmp_path}/"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert len(lines) == len(done.stdout.splitlines()) == 5, "no process trains when it imports the script"
    assert lines["module"].startswith("ran process (one step"), "what a module has needs no script"
    assert lines["auto"] == "ran sync (other processes cannot have them)"
    for name in ("asked", "workers", "a3c"):
        assert lines[name].startswith("refused another process cannot import this script: put what it does below")
    assert done.stderr.count("the environments are stepped in this process: another process cannot import") == 1
    assert "Traceback" not in done.stderr


def test_names_of_arguments_survive_a_round_trip():
    config = Config().replace(env_kwargs={"sizes": (1, 2), "deep": {"x": None}})
    assert config.env.env_kwargs == {"sizes": [1, 2], "deep": {"x": None}}
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
