"""Settings in files: what is written is read, in every format, and what is wrong is said with file and key."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from test_config import A3C, ATARI, EVERY_FIELD, PONG

from fastac.config import Config, FileFormat, read_settings_file, write_settings


@pytest.mark.parametrize("kind", get_args(FileFormat))
@pytest.mark.parametrize("settings", [{}, EVERY_FIELD, A3C, {**PONG, **ATARI}], ids=["default", "all", "a3c", "atari"])
def test_what_is_written_is_read(tmp_path, kind, settings):
    config, path = Config().replace(**settings), tmp_path / f"c.{kind}"
    path.write_text(write_settings(config, kind))
    if kind == "toml":  # which has no null: also inside arguments None is a text
        settings = {**settings, "env_kwargs": json.loads(json.dumps(config.to_dict()["env"]["env_kwargs"]))}
        config = config.replace(env_kwargs=json.loads(json.dumps(settings["env_kwargs"]).replace("null", '"None"')))
    assert read_settings_file(path) == config.to_flat()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"run_id": "x", "algo": {"gamma": 0.9, "algo": "ppo"}, "num_envs": 4}'),
        ("a.toml", 'num_envs = 4.0\n[algo]\ngamma = 0.9\nalgo = "ppo"'),
        ("a.yaml", "num_envs: 4\nalgo: {gamma: 9e-1, algo: ppo}"),
        ("a.yml", "num_envs: 4\nalgo: ppo\ngamma: 0.9"),
    ],
)
def test_settings_are_flat_or_in_sections(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_settings_file(tmp_path / name) == {"gamma": 0.9, "algo": "ppo", "num_envs": 4}


@pytest.mark.parametrize("word", ["1e-3", "1.0e-3", "1E-3", "+.1e-2", "0.001"])
def test_numbers_in_yaml_are_numbers_however_they_are_written(tmp_path, word):
    (tmp_path / "a.yaml").write_text(f"learning_rate: {word}\nmax_grad_norm: null\nbudget_minutes: None")
    expected = {"learning_rate": 1e-3, "max_grad_norm": None, "budget_minutes": None}
    assert read_settings_file(tmp_path / "a.yaml") == expected


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "gama = 3", r"'gama' is not a fastac setting. Did you mean gamma"),
        ("a.yaml", "gamma: high", r"gamma is 'high', expected a number"),
        ("a.yaml", "learning_rate: None", r"learning_rate is 'None', expected a number"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", r"it is not YAML \(could not determine a constructor"),
        ("a.yaml", "a: [", r"it is not YAML"),
        ("a.json", "{", r"it is not JSON"),
        ("a.toml", "a = ", r"it is not TOML"),
        ("a.json", "[1]", r"it holds a list, expected settings by name"),
        ("a.toml", "[optim]\ngamma = 0.9", r"'gamma' stands in 'optim', expected in 'algo'"),
        ("a.json", '{"gamma": 0.9, "algo": {"gamma": 0.8}}', r"'gamma' stands there twice"),
        ("a.json", '{"env": "CartPole-v1"}', r"'env' is not a fastac setting"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_settings_file(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"), [("a.ini", "expected a file that ends with .json"), ("b.toml", "No such file")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, says):
    (tmp_path / "a.ini").touch()
    with pytest.raises(ValueError, match=says):
        read_settings_file(tmp_path / name)
