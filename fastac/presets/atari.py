"""Atari games: fast presets for Pong, and the published settings, which go for any environment of images.

Sources of the published ones: stable-baselines3's zoo (A2C), Schulman et al. 2017, arXiv 1707.06347, and CleanRL
(PPO), Mnih et al. 2016, arXiv 1602.01783 (A3C). Evaluations sample, as the policies were trained to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from fastac.config import Config
from fastac.presets.preset import Preset

GAMES = ("Pong", "Breakout", "BeamRider", "SpaceInvaders", "Qbert", "Seaquest")


def _base(env_id: str) -> Config:
    """What all have in common: 40 million frames, rarely evaluated because games are long."""
    return Config().replace(
        env_id=env_id,
        workers="auto",
        total_env_steps=10_000_000,
        eval_every=500_000,
        eval_episodes=30,
        eval_actions="sampled",
        checkpoint_every=500_000,
    )


def atari_a2c(env_id: str) -> Config:
    """A2C as published: 16 envs of 5 steps, TensorFlow's RMSprop, the Nature network."""
    return _base(env_id).replace(
        algo="a2c",
        num_envs=16,
        num_steps=5,
        gae_lambda=1.0,
        ent_coef=0.01,
        vf_coef=0.25,
        optimizer="rmsprop_tf",
        optimizer_eps=1e-5,
        learning_rate=7e-4,
    )


def atari_ppo(env_id: str) -> Config:
    """PPO as published: 8 envs of 128 steps, 4 epochs of 4 minibatches, rates that fall to 0, the Nature network."""
    return _base(env_id).replace(
        algo="ppo",
        num_envs=8,
        num_steps=128,
        num_epochs=4,
        num_minibatches=4,
        normalize_advantage=True,
        clip_coef=0.1,
        clip_coef_schedule="linear",
        ent_coef=0.01,
        learning_rate=2.5e-4,
        learning_rate_schedule="linear",
    )


def atari_a3c(env_id: str) -> Config:
    """A3C as in its paper: a worker per core, one env of 5 steps each, its small network and its RMSprop.

    The paper adds up the gradients of the 5 steps and this library averages them: its epsilon of 0.1, inside the
    root, is 0.1 / 5**2 here, and makes the same steps. Its norm is clipped at 40 by common use, which is 40 / 5.
    """
    return _base(env_id).replace(
        algo="a3c",
        envs_per_worker=1,
        num_steps=5,
        encoder="a3c",
        gae_lambda=1.0,
        ent_coef=0.01,
        optimizer="rmsprop_tf",
        optimizer_eps=0.1 / 25,
        max_grad_norm=40 / 5,
        learning_rate=7e-4,
        learning_rate_schedule="linear",
    )


def _atari_a3c(env_id: str) -> Config:
    """A3C as in its paper: a worker per core, one env of 5 steps each, its small network, RMSprop and protocol."""
    return atari_a3c(env_id).replace(atari_protocol="a3c")


def pong_ppo() -> Config:
    """PPO on Pong in minutes: minibatches of 64 at a high rate, the small network of A3C."""
    return atari_ppo("ALE/Pong-v5").replace(
        encoder="a3c",
        num_envs=16,
        num_steps=64,
        num_epochs=3,
        num_minibatches=16,
        clip_coef_schedule="constant",
        learning_rate=5e-4,
        learning_rate_schedule="constant",
        total_env_steps=3_000_000,
        eval_every=50_000,
        eval_from_return=16.0,
        eval_episodes=100,
    )


def pong_a2c() -> Config:
    """A2C on Pong: many small updates at a high rate, the small network of A3C."""
    return atari_a2c("ALE/Pong-v5").replace(
        encoder="a3c",
        num_envs=8,
        num_steps=20,
        learning_rate=1e-3,
        vf_coef=0.5,
        total_env_steps=4_000_000,
        eval_every=50_000,
        eval_from_return=16.0,
        eval_episodes=100,
    )


IMAGE_DEFAULTS: Mapping[str, Callable[[str], Config]] = {"a2c": atari_a2c, "ppo": atari_ppo, "a3c": atari_a3c}

ATARI: tuple[Preset, ...] = (
    Preset("ALE/Pong-v5", "ppo", None, pong_ppo),
    Preset("ALE/Pong-v5", "a2c", None, pong_a2c),
    *(
        Preset(env_id, f"{algo}-published" if game == "Pong" and algo != "a3c" else algo, None, partial(make, env_id))
        for game in GAMES
        for env_id in (f"ALE/{game}-v5",)
        for algo, make in (("a2c", atari_a2c), ("ppo", atari_ppo), ("a3c", _atari_a3c))
    ),
)
