"""Configurations from files and earlier runs: which wins, what is printed, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from run_support import SMALL

import fastac
from fastac.cli import main
from fastac.config import Config
from fastac.runs.configuring import Base, configure


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("env_id: CartPole-v1\ngamma: 0.9\nlearning_rate: 1e-3\nhidden_sizes: [8]")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("from") / "run"
    return fastac.train("CartPole-v1", run_dir=folder, **SMALL, gamma=0.8, total_env_steps=64)


def config_of(capsys, *words: str) -> Config:
    assert main(["config", *words]) == 0, capsys.readouterr().err
    return Config.from_dict(json.loads(capsys.readouterr().out))


def test_a_flag_wins_over_the_file_and_the_file_over_the_preset(capsys):
    preset = config_of(capsys, "CartPole-v1")
    ours = config_of(capsys, "--config", "mine.yaml", "--gamma", "0.5", "--seed", "7")
    assert ours == preset.replace(gamma=0.5, learning_rate=1e-3, hidden_sizes=[8], seed=7)
    assert config_of(capsys, "Acrobot-v1", "--config", "mine.yaml").env.env_id == "Acrobot-v1"


@pytest.mark.parametrize("kind", ["json", "yaml", "toml"])
def test_what_is_printed_is_the_configuration_that_is_trained(capsys, monkeypatch, tmp_path, kind):
    trained = []
    monkeypatch.setattr("fastac.api.start_config", lambda config, *_, **__: trained.append(config))
    monkeypatch.setattr("fastac.cli.train._follow", lambda session, as_json: 0)
    words = ["CartPole-v1", "--algo", "a3c", "--envs-per-worker", "4", "--total-env-steps", "5000"]
    assert main(["config", *words, "--format", kind]) == 0
    (tmp_path / f"c.{kind}").write_text(capsys.readouterr().out)
    assert main(["train", *words]) == main(["train", "--config", f"c.{kind}"]) == 0
    assert trained[0] == trained[1]


def test_from_is_the_same_run_with_changes(capsys, run):
    again = config_of(capsys, "--from", str(run.directory))
    assert again == run.config
    assert config_of(capsys, "--from", str(run.directory), "--seed", "1") == run.config.replace(seed=1)
    above = config_of(capsys, "--from", str(run.directory), "--config", "mine.yaml")
    assert above == run.config.replace(gamma=0.9, learning_rate=1e-3)


def test_from_trains_a_new_run_with_the_same_bits(run, tmp_path):
    assert main(["train", "--from", str(run.directory), "--run-dir", "again"]) == 0
    again = fastac.load("again", checkpoint="last")
    known = fastac.load(run.directory, checkpoint="last").policy.model.state_dict()
    assert all(bool((value == known[name]).all()) for name, value in again.policy.model.state_dict().items())
    assert again.config == run.config


def test_what_a_given_setting_decides_is_not_taken_from_the_file():
    base = Base.read({"env_id": "ALE/Pong-v5", "atari_protocol": "dqn", "noop_max": 30})
    assert base.below({"atari_protocol": "machado"}) == {"env_id": "ALE/Pong-v5", "atari_protocol": "machado"}
    base = Base.read({"num_envs": 8, "envs_per_worker": 4})
    assert base.below({"num_envs": 6}) == {"num_envs": 6}
    assert base.below({"workers": 3}) == {"envs_per_worker": 4, "workers": 3}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train --config nothing.yaml", "config is 'nothing.yaml', which cannot be read"),
        ("train --config wrong.toml", "wrong.toml: gamma is 3.0, expected a number from 0 to 1"),
        ("train CartPole-v1 --config typo.json", "typo.json: 'gama' is not a fastac setting. Did you mean gamma"),
        ("train --config unnamed.toml", "train needs an environment id first"),
        ("train --config wrong.toml --gamma 4", "fastac: gamma is 4.0, expected a number from 0 to 1"),
        ("train --from nowhere", "nowhere holds no fastac run, expected a directory with config.json"),
        ("config CartPole-v1 --format xml", "'xml' is not known"),
    ],
)
def test_what_is_wrong_is_one_sentence(capsys, tmp_path, words, says):
    (tmp_path / "wrong.toml").write_text('env_id = "CartPole-v1"\ngamma = 3')
    (tmp_path / "unnamed.toml").write_text("gamma = 0.9")
    (tmp_path / "typo.json").write_text('{"gama": 0.9}')
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(says, err), err


def test_python_takes_files_runs_and_mappings(run):
    for config in ("mine.yaml", {"gamma": 0.9, "optim": {"learning_rate": 1e-3}}, run.directory, run.config):
        made, _ = configure("CartPole-v1", None, {"ent_coef": 0.3}, Base.read(config))
        assert made.algo.gamma in (0.8, 0.9) and made.algo.ent_coef == 0.3
    with pytest.raises(ValueError, match=r"env is None, expected .* or a config that names one"):
        fastac.train(config={"gamma": 0.9})
    session = fastac.start(config="mine.yaml", run_dir="new", **{**SMALL, "hidden_sizes": (4,)}, total_env_steps=64)
    assert (session.config.algo.gamma, session.config.model.hidden_sizes) == (0.9, (4,))
    session.close()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --from runs/x --preset ppo", "from and preset are both given"),
        ("train CartPole-v1 --seeds 2 --shared-run-dir", "shared_run_dir is True with seeds"),
    ],
)
def test_what_would_be_ignored_is_refused(capsys, words, told):
    assert main(words.split()) == 2
    assert told in capsys.readouterr().err
