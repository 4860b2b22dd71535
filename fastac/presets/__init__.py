"""Presets: complete configurations as functions; other environments get defaults by kind of spaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from fastac.config import AlgoName, Config, is_atari
from fastac.presets.atari import ATARI, IMAGE_DEFAULTS
from fastac.presets.classic import CLASSIC
from fastac.presets.mujoco import MUJOCO
from fastac.presets.preset import Preset

__all__ = [
    "IMAGE_DEFAULTS",
    "PRESETS",
    "VECTOR_DEFAULTS",
    "Kind",
    "Preset",
    "default",
    "describe_untuned",
    "find",
    "names",
]

# Kind of spaces, as far as the defaults depend on it.
Kind = Literal["discrete", "continuous", "image"]

PRESETS: tuple[Preset, ...] = (*CLASSIC, *MUJOCO, *ATARI)


def find(env_id: str, name: str) -> Config | None:
    """Return the configuration of a preset, or None if the environment has none of this name."""
    for preset in PRESETS:
        if (preset.env_id, preset.name) == (env_id, name):
            return preset.make()
    return None


def names(env_id: str) -> list[str]:
    """Return the names of an environment's presets."""
    return [preset.name for preset in PRESETS if preset.env_id == env_id]


def default(env_id: str, algo: AlgoName, kind: Kind) -> Config:
    """Return untuned defaults for an environment."""
    if kind == "image":
        config = IMAGE_DEFAULTS[algo](env_id)
        # Atari rewards are clipped. The scale of other rewards is unknown, so they are normalised.
        return config if is_atari(env_id) else config.replace(normalize_reward=True)
    config = Config().replace(env_id=env_id, normalize_obs=True, normalize_reward=True)
    return VECTOR_DEFAULTS[algo](config, kind)


def _a2c(config: Config, kind: Kind) -> Config:
    return config.replace(
        num_steps=8,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=7e-4,
        ent_coef=0.0 if kind == "continuous" else 0.01,
    )


def _a3c(config: Config, kind: Kind) -> Config:
    return _a2c(config.replace(algo="a3c", workers="auto", envs_per_worker=8), kind)


def _ppo(config: Config, kind: Kind) -> Config:
    return config.replace(
        algo="ppo",
        num_envs=16,
        num_steps=128,
        num_epochs=10,
        num_minibatches=16,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=3e-4,
        normalize_advantage=True,
        ent_coef=0.0,
    )


def _reinforce(config: Config, kind: Kind) -> Config:
    return config.replace(
        algo="reinforce", collect="episodes", num_envs=8, num_steps=1000, gae_lambda=1.0, normalize_advantage=True
    )


VECTOR_DEFAULTS: Mapping[AlgoName, Callable[[Config, Kind], Config]] = {
    "a2c": _a2c,
    "a3c": _a3c,
    "ppo": _ppo,
    "reinforce": _reinforce,
}


# Settings of the defaults that a user may not expect, and the words for them in the log.
_UNEXPECTED = {
    "normalize_obs": "observations standardised by running statistics",
    "normalize_reward": "rewards scaled by the running deviation of the return",
    "clip_rewards": "rewards clipped to [-1, 1]",
    "learning_rate_schedule": "learning rate falling to 0 at total_env_steps",
    "ent_coef_schedule": "entropy bonus falling to 0 at total_env_steps",
    "clip_coef_schedule": "clipping range falling to 0 at total_env_steps",
}


def describe_untuned(config: Config) -> str | None:
    """Return a log sentence if the environment has no preset for the algorithm, else None."""
    tuned = [preset.make() for preset in PRESETS if preset.env_id == config.env.env_id]
    if any(preset.algo.algo == config.algo.algo for preset in tuned):
        return None
    values = {**vars(config.env), **vars(config.model), **vars(config.optim)}
    surprises = [text for name, text in _UNEXPECTED.items() if values[name] in (True, "linear")]
    what = f" ({', '.join(surprises)})" if surprises else ""
    return f"no preset for {config.env.env_id} with {config.algo.algo}: untuned defaults{what}"
