"""Presets: each is a configuration that fits its environment, and published settings are what their sources say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from fastac import presets
from fastac.build import apply_settings, build_model
from fastac.config import AlgoName, Config, is_atari
from fastac.models import ConvEncoder, MLPEncoder
from fastac.presets import PRESETS, Preset, default, find, names
from fastac.presets.atari import ATARI, GAMES
from fastac.presets.classic import MASKED_CARTPOLE

# Observations' size, and actions: so many, or of so many dimensions.
SPACES = {
    "CartPole-v1": (4, Discrete(2)),
    "Acrobot-v1": (6, Discrete(3)),
    "Pendulum-v1": (3, Box(-2.0, 2.0, (1,))),
    "LunarLander-v3": (8, Discrete(4)),
    "LunarLanderContinuous-v3": (8, Box(-1.0, 1.0, (2,))),
    "MountainCarContinuous-v0": (2, Box(-1.0, 1.0, (1,))),
    MASKED_CARTPOLE: (2, Discrete(2)),
    "HalfCheetah-v5": (17, Box(-1.0, 1.0, (6,))),
    "Hopper-v5": (11, Box(-1.0, 1.0, (3,))),
    "Walker2d-v5": (17, Box(-1.0, 1.0, (6,))),
    "Ant-v5": (105, Box(-1.0, 1.0, (8,))),
}
ALL_ACTIONS = 18
FAST = {("Pong", "a2c"), *((game, "ppo") for game in GAMES)}


def fake_envs(config: Config) -> SimpleNamespace:
    """Stand in for environments as far as a model is built for them."""
    if is_atari(config.env.env_id):
        shape = (config.env.frame_stack, config.env.screen_size, config.env.screen_size)
        obs, action = Box(0, 255, shape, np.uint8), Discrete(ALL_ACTIONS)
    else:
        size, action = SPACES[config.env.env_id]
        obs = Box(-np.inf, np.inf, (size,), np.float32)
    return SimpleNamespace(single_observation_space=obs, single_action_space=action)


def name_of(preset: Preset) -> str:
    return f"{preset.env_id}-{preset.name}"


def published(game: str, algo: str) -> Config:
    """Return a game's published settings, which a fast preset moves to a name of their own."""
    config = find(f"ALE/{game}-v5", f"{algo}-published" if (game, algo) in FAST else algo)
    assert config is not None
    return config


def pick(config: Config, expected: dict[str, object]) -> dict[str, object]:
    """Return what the configuration has under the same flat names."""
    flat = {name: value for section in config.to_dict().values() for name, value in section.items()}
    return {name: flat[name] for name in expected}


@pytest.mark.parametrize("preset", PRESETS, ids=name_of)
def test_every_preset_is_a_configuration_whose_model_fits_the_environment(preset):
    config = preset.make()
    assert config.env.env_id == preset.env_id and find(preset.env_id, preset.name) == config
    assert Config.from_dict(config.to_dict()) == config
    assert preset.what.endswith(".")
    envs = fake_envs(config)
    space = envs.single_observation_space
    model = build_model(config.model, envs)
    obs = torch.from_numpy(np.zeros((2, *space.shape), space.dtype))
    params, value, _ = model(obs, model.initial_state(2), torch.ones(2, dtype=torch.bool))
    action = envs.single_action_space
    assert params.shape == (2, action.n if isinstance(action, Discrete) else action.shape[0])
    assert value.shape == (2,)
    assert isinstance(model.trunks[0].encoder, ConvEncoder if is_atari(preset.env_id) else MLPEncoder)


def test_no_environment_has_two_presets_of_a_name():
    assert len({(preset.env_id, preset.name) for preset in PRESETS}) == len(PRESETS)


def test_the_name_of_an_algorithm_is_of_a_preset_of_it():
    for preset in PRESETS:
        algo = preset.make().algo.algo
        assert preset.name.split("-")[0] in (algo, "lecture"), preset


def test_every_game_has_all_published_settings():
    for game in GAMES:
        expected = {"a2c", "ppo", "a3c"} | {f"{algo}-published" for fast, algo in FAST if fast == game}
        assert set(names(f"ALE/{game}-v5")) == expected
    assert all(preset.reaches is None for preset in ATARI if "published" in preset.name)


@pytest.mark.parametrize("preset", PRESETS, ids=name_of)
def test_a3c_keeps_its_papers_protocol_and_the_others_dqns(preset):
    config = preset.make()
    expected = ("a3c" if config.algo.algo == "a3c" else "dqn") if is_atari(preset.env_id) else None
    assert config.env.atari_protocol == expected
    if expected is not None:  # and none of its fields is another's
        assert config == config.replace(atari_protocol=expected)


# Of the games: rewards clipped, policies evaluated as they were trained, for 40 million frames.
COMMON = {
    "clip_rewards": True,
    "normalize_reward": False,
    "gamma": 0.99,
    "eval_actions": "sampled",
    "total_env_steps": 10_000_000,
    "core": "identity",
    "shared_trunk": True,
    "collect": "steps",
    "baseline": True,
    "ent_coef": 0.01,
    "ent_coef_schedule": "constant",
}
SOURCES = {
    # stable-baselines3's zoo, hyperparams/a2c.yml; what it does not say is stable-baselines3's default.
    "a2c": {
        "num_envs": 16,
        "num_steps": 5,
        "gae_lambda": 1.0,
        "vf_coef": 0.25,
        "normalize_advantage": False,
        "optimizer": "rmsprop_tf",
        "optimizer_eps": 1e-5,
        "learning_rate": 7e-4,
        "learning_rate_schedule": "constant",
        "max_grad_norm": 0.5,
        "num_epochs": 1,
        "num_minibatches": 1,
    },
    # Schulman et al. 2017, table 5, with the value loss, the norm and Adam's epsilon of CleanRL's ppo_atari.
    "ppo": {
        "num_envs": 8,
        "num_steps": 128,
        "num_minibatches": 4,
        "num_epochs": 4,
        "gae_lambda": 0.95,
        "vf_coef": 0.5,
        "normalize_advantage": True,
        "clip_coef": 0.1,
        "clip_coef_schedule": "linear",
        "optimizer": "adam",
        "optimizer_eps": 1e-5,
        "learning_rate": 2.5e-4,
        "learning_rate_schedule": "linear",
        "max_grad_norm": 0.5,
    },
    # Mnih et al. 2016: an epsilon of 0.1 and a norm of 40 for the sum over 5 steps, of which this is the mean.
    "a3c": {
        "envs_per_worker": 1,
        "workers": "auto",
        "num_steps": 5,
        "gae_lambda": 1.0,
        "vf_coef": 0.5,
        "normalize_advantage": False,
        "optimizer": "rmsprop_tf",
        "optimizer_eps": 0.004,
        "learning_rate": 7e-4,
        "learning_rate_schedule": "linear",
        "max_grad_norm": 8.0,
    },
}
NETS = {"a2c": (32, 512), "ppo": (32, 512), "a3c": (16, 256)}  # channels of the first convolution, features


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("algo", SOURCES)
def test_published_settings_are_those_of_their_sources(game, algo):
    config = published(game, algo)
    assert config.algo.algo == algo
    expected = COMMON | SOURCES[algo]
    assert pick(config, expected) == pytest.approx(expected)
    encoder = build_model(config.model, fake_envs(config)).trunks[0].encoder
    assert (encoder.convs[0].out_channels, encoder.output_size) == NETS[algo]


@pytest.mark.parametrize("algo", SOURCES)
def test_a_game_without_a_preset_gets_the_published_settings(algo):
    assert default("ALE/Tennis-v5", algo, "image") == published("Seaquest", algo).replace(env_id="ALE/Tennis-v5")


# Tianshou's examples/mujoco/mujoco_a2c.py.
ROBOTS_A2C = {
    "num_envs": 16,
    "num_steps": 5,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "normalize_advantage": False,
    "num_epochs": 1,
    "num_minibatches": 1,
    "optimizer": "rmsprop",
    "optimizer_eps": 1e-5,
    "learning_rate": 7e-4,
    "learning_rate_schedule": "linear",
    "max_grad_norm": 0.5,
    "normalize_obs": True,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "shared_trunk": False,
}


@pytest.mark.parametrize("robot", ["HalfCheetah-v5", "Hopper-v5", "Ant-v5"])
def test_published_settings_for_robots_are_those_of_their_source(robot):
    config = find(robot, "a2c-published")
    assert pick(config, ROBOTS_A2C) == ROBOTS_A2C
    head = build_model(config.model, fake_envs(config)).head
    assert (head.log_std == -0.5).all()
    gain = torch.linalg.matrix_norm(head.layer.weight, ord=2)
    assert 0.01 <= gain <= 0.01 * 2**0.5 + 1e-6 and not head.layer.bias.any()


def test_the_masked_cartpole_is_played_with_a_memory():
    assert find(MASKED_CARTPOLE, "ppo").model.core == "lstm"


def test_every_algorithm_has_defaults_for_every_kind_of_environment():
    assert {*presets.VECTOR_DEFAULTS} == {*presets.IMAGE_DEFAULTS} == {*get_args(AlgoName)}
    for algo in get_args(AlgoName):
        for kind in ("discrete", "continuous", "image"):
            assert presets.default("Any-v0", algo, kind).algo.algo == algo


@pytest.mark.parametrize(
    ("settings", "num_minibatches"),
    [
        ({}, 16),
        ({"core": "lstm"}, 4),  # of 16 envs
        ({"core": "gru", "num_envs": 64}, 16),
        ({"core": "lstm", "num_envs": 6}, 1),
        ({"core": "lstm", "num_envs": 20}, 5),
        ({"core": "lstm", "num_envs": 32, "workers": 2}, 4),
        ({"core": "lstm", "workers": "auto"}, 4),
        ({"core": "lstm", "num_envs": 3}, 1),
        ({"core": "lstm", "num_minibatches": 16}, 16),  # as asked
        ({"num_minibatches": 8}, 8),
    ],
)
def test_a_recurrent_runs_default_minibatches_have_four_sequences_or_more(settings, num_minibatches):
    defaults = default("CartPole-v1", "ppo", "discrete")
    config = apply_settings(defaults, settings)
    assert config.algo.num_minibatches == num_minibatches
    assert config == defaults.replace(
        **settings, **({} if "num_minibatches" in settings else {"num_minibatches": num_minibatches})
    )


def test_a_recurrent_preset_keeps_its_minibatches_while_they_have_sequences():
    preset = find(MASKED_CARTPOLE, "ppo")
    assert apply_settings(preset, {"seed": 3}) == preset.replace(seed=3)
    assert apply_settings(preset, {"num_envs": 8}).algo.num_minibatches == 2
    assert apply_settings(preset, {"core": "identity"}).algo.num_minibatches == preset.algo.num_minibatches


def test_settings_that_do_not_fit_are_refused_as_ever():
    defaults = default("CartPole-v1", "ppo", "discrete")
    with pytest.raises(ValueError, match="num_minibatches is 16, expected a divisor of 250"):
        apply_settings(defaults, {"num_envs": 5, "num_steps": 50})
    with pytest.raises(ValueError, match="num_minibatches is 3, expected a divisor of 16"):
        apply_settings(defaults, {"core": "lstm", "num_minibatches": 3})
