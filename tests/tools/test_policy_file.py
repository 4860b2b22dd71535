"""Policies as files: what is loaded acts as what was saved, and nothing else is taken."""

from __future__ import annotations

import json
from types import SimpleNamespace

import dict_envs
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

import fastac
from fastac.build import build_model
from fastac.config import ModelConfig
from fastac.envs.rows import FlatBox, Reading
from fastac.envs.spaces import SquashedBox
from fastac.tools.policy import TrainedPolicy

CHOICES = Discrete(9, start=3)
VECTOR = Box(-1.0, 1.0, (3,), np.float32)
SIGNS = FlatBox(dict_envs.Signs.observation_space, Reading(drop_keys=("mission",)))


def make_policy(row_space=VECTOR, action_space=CHOICES, encoder=None, **settings) -> TrainedPolicy:
    config = ModelConfig(hidden_sizes=(4,), lstm_size=4, **settings)
    spaces = SimpleNamespace(single_observation_space=row_space, single_action_space=action_space)
    model = build_model(config, spaces, seed=1, encoder=encoder)
    model.head.layer.weight.data.mul_(300.0)
    return TrainedPolicy(model, row_space, action_space, config=config)


@pytest.mark.parametrize(
    "make",
    [
        make_policy,
        lambda: make_policy(core="lstm", normalize_obs=True),
        lambda: make_policy(action_space=SquashedBox(Box(-2.0, 3.0, (2,), np.float32)), dependent_std=True),
        lambda: make_policy(SIGNS, MultiDiscrete([2, 3])),
    ],
    ids=["mlp", "lstm", "squashed", "dict with a text"],
)
def test_what_is_loaded_acts_as_what_was_saved(tmp_path, make):
    policy = make()
    policy.save(tmp_path / "mine.safetensors")
    loaded = fastac.load_policy(tmp_path / "mine.safetensors")
    assert loaded.action_space == policy.action_space and type(loaded.action_space) is type(policy.action_space)
    policy.observation_space.seed(0)
    for _ in range(5):
        obs = policy.observation_space.sample()
        for name in ("act", "value"):
            np.testing.assert_array_equal(getattr(policy, name)(obs), getattr(loaded, name)(obs))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "mine.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_saves_its_policy(tmp_path):
    run = fastac.train("CartPole-v1", num_envs=2, total_env_steps=20, eval_episodes=1, run_dir=tmp_path / "run")
    for policy in (run.policy, fastac.load(tmp_path / "run").policy):
        policy.save(str(tmp_path / "p"))
        assert fastac.load_policy(str(tmp_path / "p")).value(np.zeros(4)) == run.policy.value(np.zeros(4))


def test_an_encoder_without_a_name_is_given_again(tmp_path):
    make = lambda space: nn.Linear(3, 4)  # noqa: E731 (a lambda has no name)
    policy = make_policy(encoder=make)
    policy.save(tmp_path / "p")
    assert fastac.load_policy(tmp_path / "p", encoder=make).value(np.ones(3)) == policy.value(np.ones(3))
    with pytest.raises(ValueError, match="the saved weights do not fit this network"):
        fastac.load_policy(tmp_path / "p")


def test_a_policy_without_its_configuration_is_not_saved(tmp_path):
    policy = make_policy()
    with pytest.raises(ValueError, match="was made without a config"):
        TrainedPolicy(policy.model, VECTOR, policy.action_space).save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def forge(path, change):
    """Rewrite a file with another header or other arrays."""
    with safe_open(path, "numpy") as file:
        body = json.loads(file.metadata()["fastac_policy"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(body, arrays)
    save_file(arrays, path, {"fastac_policy": json.dumps(body)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body, arrays: arrays["model/value_head.bias"].__iadd__(1.0), "it is damaged: its sha256 is wrong"),
        (lambda body, arrays: body["config"].update(activation="tanh"), "it is damaged: its sha256 is wrong"),
        (lambda body, arrays: body.update(schema=99), "written by a newer fastac .*: upgrade fastac"),
        (lambda body, arrays: body.clear(), "it was not written by policy.save"),
    ],
    ids=["weights", "settings", "newer", "empty"],
)
def test_another_file_is_refused_in_a_sentence(tmp_path, change, message):
    path = tmp_path / "p"
    make_policy().save(path)
    forge(path, change)
    with pytest.raises(ValueError, match=f"p is not a policy that can be loaded: .*{message}"):
        fastac.load_policy(path)


def test_no_file_and_no_safetensors_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*, expected one that policy.save has written"):
        fastac.load_policy(tmp_path / "p")
    (tmp_path / "p").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a policy that can be loaded"):
        fastac.load_policy(tmp_path / "p")
