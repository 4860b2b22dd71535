"""Search spaces: every configuration that can be drawn is valid, and a file may change what is searched."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import optuna
import pytest

from fastac.build import resolve_shards
from fastac.config import Config
from fastac.presets import PRESETS, default
from fastac.studies.search import _suggest
from fastac.studies.spaces import (
    SPACES,
    Dimension,
    change_space,
    check_space,
    find_space,
    fit_settings,
)

VECTOR, IMAGE = gym.spaces.Box(-1.0, 1.0, (4,)), gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
DISCRETE, BOX = gym.spaces.Discrete(2), gym.spaces.Box(-2.0, 2.0, (1,))
UNBOUNDED = gym.spaces.Box(-np.inf, np.inf, (3,))


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def names(space):
    return {each.name for each in space}


@pytest.mark.parametrize("algo", SPACES)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_whatever_is_drawn_is_valid(algo, kind):
    """With Optuna's random sampler, for long and short runs, a recurrent core, and the number of shards of a run."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    plain = default("CartPole-v1" if kind == "discrete" else "Pendulum-v1", algo, kind)
    space = find_space(plain, VECTOR, DISCRETE if kind == "discrete" else BOX)
    for number in range(100):
        config = plain.replace(total_env_steps=[2_000, 100_000, 10_000_000][number % 3])
        if number % 4 == 0 and algo != "reinforce":
            config = config.replace(core="lstm")
        trial = study.ask()
        settings = {each.name: each.to_value(_suggest(trial, each)) for each in space}
        fitted = fit_settings(config.replace(num_minibatches=1), settings)
        resolve_shards(fitted)
        assert fitted.algo.collect == "episodes" or fitted.batch_size <= max(64, fitted.run.total_env_steps / 20)
        free = {"num_steps", "num_minibatches", "num_envs"}
        flat = fitted.to_flat()
        assert {name: flat[name] for name in settings if name not in free} == {
            name: value for name, value in settings.items() if name not in free
        }


def test_minibatches_and_steps_are_fitted_by_hand():
    config = Config().replace(total_env_steps=20_000)  # a rollout of at most 1,000 rows
    fitted = fit_settings(config, {"num_envs": 16, "num_steps": 2048, "num_minibatches": 32})
    assert fitted.algo.num_steps == 62 and fitted.algo.num_minibatches == 32  # 992 = 31 * 32
    fitted = fit_settings(config, {"num_envs": 8, "num_steps": 5, "num_minibatches": 32})
    assert fitted.algo.num_minibatches == 20  # of 40 rows
    fitted = fit_settings(config.replace(core="gru"), {"num_envs": 8, "num_steps": 64, "num_minibatches": 32})
    assert fitted.algo.num_minibatches == 8  # sequences


def test_what_means_nothing_is_not_searched():
    config = Config()
    assert {"log_std_init", "squash_actions"} & names(find_space(config, VECTOR, DISCRETE)) == set()
    assert {"log_std_init", "squash_actions"} <= names(find_space(config, VECTOR, BOX))
    assert "squash_actions" not in names(find_space(config, VECTOR, UNBOUNDED))
    assert "hidden_sizes" not in names(find_space(config, IMAGE, DISCRETE))
    assert "normalize_obs" in names(find_space(config, IMAGE, DISCRETE))
    atari = default("ALE/Pong-v5", "a2c", "image")
    assert "normalize_reward" not in names(find_space(atari, IMAGE, DISCRETE))
    assert "gamma" not in names(find_space(config, VECTOR, DISCRETE, ["gamma"]))


def test_values_by_hand():
    rate = Dimension("learning_rate", "log-float", 1e-4, 1e-2)
    assert rate.to_value(0.0012345) == 0.00123
    entropy = Dimension("ent_coef", "log-float", 1e-6, 0.1, zero_below=1e-5)
    assert entropy.to_value(9e-6) == 0.0 and entropy.to_value(2e-5) == 2e-5
    assert entropy.to_drawn(0.0) == 1e-6 and entropy.to_drawn(0.5) is None
    sizes = Dimension("hidden_sizes", "categorical", choices=((64, 64), (8,)))
    assert sizes.labels == ["64 64", "8"] and sizes.to_value("64 64") == (64, 64)
    assert sizes.to_drawn((64, 64)) == "64 64" and sizes.to_drawn((1,)) is None


@pytest.mark.parametrize("preset", [each for each in PRESETS if each.name in SPACES], ids=lambda p: p.env_id + p.name)
def test_presets_lie_in_the_space_as_far_as_it_goes(preset):
    """What the space holds of a preset comes back the same."""
    config = preset.make()
    for each in SPACES[config.algo.algo]:
        value = config.to_flat()[each.name]
        drawn = each.to_drawn(value)
        assert drawn is None or each.to_value(drawn) == pytest.approx(value)


TOML = """
only = true
[learning_rate]
kind = "log-float"
low = 1e-3
high = 1e-2
[hidden_sizes]
choices = [[32, 32], [16]]
[max_grad_norm]
choices = [0.5, "None"]
"""


def test_a_file_changes_the_space(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(TOML)
    space = change_space(SPACES["a2c"], path)
    assert names(space) == {"learning_rate", "hidden_sizes", "max_grad_norm"}
    assert space[0] == Dimension("learning_rate", "log-float", 1e-3, 1e-2)
    assert space[1].choices == ((32, 32), (16,)) and space[2].choices == (0.5, None)
    check_space(Config(), space)
    path = tmp_path / "space.json"
    path.write_text(json.dumps({"gamma": {"kind": "float", "low": 0.9, "high": 1}}))
    changed = change_space(SPACES["a2c"], path)
    assert names(changed) == names(SPACES["a2c"])
    assert Dimension("gamma", "float", 0.9, 1) in changed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gama": {"choices": [1]}}, "'gama' in the search space is not a setting that can be searched"),
        ({"seed": {"choices": [1]}}, "'seed' in the search space is not a setting that can be searched"),
        ({"gamma": 0.9}, "expected choices"),
        ({"gamma": {"choices": []}}, "expected choices"),
        ({"gamma": {"low": 1.0, "high": 0.5}}, "expected choices"),
        ({"gamma": {"low": 0.1, "hihg": 0.5}}, "expected choices"),
        ({"gamma": {"kind": "logfloat", "low": 0.1, "high": 0.5}}, "kind of gamma"),
        ({"ent_coef": {"kind": "log-float", "low": 0.0, "high": 0.5}}, "expected a number above 0"),
    ],
)
def test_a_wrong_space_is_refused_in_a_sentence(changes, told):
    with pytest.raises(ValueError, match=told):
        change_space(SPACES["a2c"], changes)


def test_a_space_of_settings_that_do_not_work_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds settings that do not work: gamma is"):
        check_space(Config(), change_space((), {"gamma": {"low": 1.0, "high": 5.0}}))
    with pytest.raises(ValueError, match="nothing to search"):
        check_space(Config(), ())
    with pytest.raises(ValueError, match=r"nowhere\.toml cannot be read"):
        change_space((), tmp_path / "nowhere.toml")
