"""Atari games: fast presets, and published settings, which also suit other image environments.

Sources of the published settings: stable-baselines3's zoo (A2C); Schulman et al. 2017, arXiv 1707.06347, and CleanRL
(PPO); Mnih et al. 2016, arXiv 1602.01783 (A3C). Evaluations sample actions, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from fastac.config import AlgoName, Config, is_atari
from fastac.presets.preset import Preset

GAMES = ("Pong", "Breakout", "BeamRider", "SpaceInvaders", "Qbert", "Seaquest")


def _base(env_id: str) -> Config:
    """Common settings of all: 40 million frames."""
    return Config().replace(
        env_id=env_id,
        total_env_steps=10_000_000,
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
    """A3C as in its paper: a worker per core, one env of 5 steps each, its small network, RMSprop and protocol.

    The paper sums the gradients of the 5 steps, and this library averages them. So its epsilon of 0.1, inside the root,
    becomes 0.1 / 5**2 here, which gives the same steps except for the initial average of squares. The gradient norm is
    clipped at 40 by common practice, which becomes 40 / 5.
    """
    config = _base(env_id).replace(
        algo="a3c",
        workers="auto",
        envs_per_worker=1,
        num_steps=5,
        gae_lambda=1.0,
        ent_coef=0.01,
        optimizer="rmsprop_tf",
        optimizer_eps=0.1 / 25,
        max_grad_norm=40 / 5,
        learning_rate=7e-4,
        learning_rate_schedule="linear",
    )
    return config.replace(encoder="a3c", atari_protocol="a3c") if is_atari(env_id) else config


def image_reinforce(env_id: str) -> Config:
    """REINFORCE on images: whole episodes, as far as memory goes."""
    return _base(env_id).replace(
        algo="reinforce",
        collect="episodes",
        num_envs=4,
        num_steps=1000,
        gae_lambda=1.0,
        normalize_advantage=True,
        reuse_forward=False,
    )


def pong_ppo() -> Config:
    """PPO on Pong in minutes: standardised pixels, A3C's small network, many small updates, a short horizon."""
    return _fast_ppo("ALE/Pong-v5").replace(
        num_epochs=2,
        num_minibatches=16,
        gamma=0.97,
        clip_coef=0.2,
        ent_coef_schedule="linear",
        learning_rate=1e-3,
        total_env_steps=1_000_000,
        # The mean of the last 100 games lags behind by 100,000 steps: at 16.5, the policy is about 18.5.
        eval_from_return=16.5,
    )


def pong_a2c() -> Config:
    """A2C on Pong: the small network of A3C, many small updates at a high rate, a short horizon."""
    return atari_a2c("ALE/Pong-v5").replace(
        encoder="a3c",
        num_envs=8,
        num_steps=20,
        gamma=0.97,
        gae_lambda=0.95,
        vf_coef=0.5,
        learning_rate=1.5e-3,
        total_env_steps=4_000_000,
        eval_from_return=6.0,
    )


def atari_ppo_fast(env_id: str) -> Config:
    """PPO on a game: standardised pixels, a small network, small minibatches, a rate that follows the KL divergence."""
    return _fast_ppo(env_id).replace(
        num_epochs=3,
        num_minibatches=8,
        # A rate that is right at first is too high later: in Breakout, KL 0.05 per rollout after 1M steps.
        learning_rate=5e-4,
        learning_rate_schedule="adaptive",
        target_kl=0.01,
        total_env_steps=6_000_000,
    )


def _fast_ppo(env_id: str) -> Config:
    """PPO with 16 envs of 64 steps, the small network and standardised pixels."""
    return atari_ppo(env_id).replace(
        # The ball of Pong is two pixels of 7,056, and the background is not 0: half of the steps are enough with this.
        normalize_obs=True,
        encoder="a3c",
        num_envs=16,
        num_steps=64,
        clip_coef_schedule="constant",
    )


IMAGE_DEFAULTS: Mapping[AlgoName, Callable[[str], Config]] = {
    "a2c": atari_a2c,
    "ppo": atari_ppo,
    "a3c": atari_a3c,
    "reinforce": image_reinforce,
}

# The algorithm's own name selects the fast preset if there is one; with the measured return.
_FAST: Mapping[tuple[str, str], tuple[float | None, Callable[[], Config]]] = {
    **{(game, "ppo"): (None, partial(atari_ppo_fast, f"ALE/{game}-v5")) for game in GAMES},
    ("Pong", "ppo"): (18.0, pong_ppo),
    ("Pong", "a2c"): (None, pong_a2c),
}
_PUBLISHED: Mapping[str, Callable[[str], Config]] = {"a2c": atari_a2c, "ppo": atari_ppo, "a3c": atari_a3c}

ATARI: tuple[Preset, ...] = (
    *(Preset(f"ALE/{game}-v5", algo, reaches, make) for (game, algo), (reaches, make) in _FAST.items()),
    *(
        Preset(
            f"ALE/{game}-v5",
            f"{algo}-published" if (game, algo) in _FAST else algo,
            None,
            partial(make, f"ALE/{game}-v5"),
        )
        for game in GAMES
        for algo, make in _PUBLISHED.items()
    ),
)
