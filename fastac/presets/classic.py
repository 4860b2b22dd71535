"""Gymnasium's small environments: measured presets that take seconds to minutes."""

from __future__ import annotations

from fastac.config import Config
from fastac.presets.preset import Preset

MASKED_CARTPOLE = "fastac.envs.masked:fastac/MaskedCartPole-v1"


def cartpole_a2c() -> Config:
    """A2C that stays solved: 64 envs, four updates per rollout, all normalised, entropy bonus, separate networks."""
    return Config().replace(
        env_id="CartPole-v1",
        algo="a2c",
        num_envs=64,
        num_steps=8,
        num_minibatches=4,  # many small updates forget less than few large ones
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=1.5e-3,
        learning_rate_schedule="linear",
        ent_coef=0.01,
        total_env_steps=500_000,
    )


def cartpole_a2c_fast() -> Config:
    """A2C with the most steps per second, which does not stay solved: one update per rollout, a high rate."""
    return Config().replace(
        env_id="CartPole-v1",
        algo="a2c",
        num_envs=64,
        num_steps=8,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=7e-3,
        learning_rate_schedule="linear",
        ent_coef=0.0,
        total_env_steps=500_000,
    )


def cartpole_ppo() -> Config:
    """PPO: ten full-batch epochs on 256 steps, a very high rate, a short horizon."""
    return Config().replace(
        env_id="CartPole-v1",
        algo="ppo",
        num_envs=8,
        num_steps=32,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=5e-3,
        learning_rate_schedule="linear",
        gamma=0.98,
        gae_lambda=0.8,
        ent_coef=0.0,
        num_epochs=10,
        normalize_advantage=True,
        total_env_steps=100_000,
    )


def cartpole_a3c() -> Config:
    """A3C that stays solved: as A2C, its envs divided by 2 workers, at half the rate for their stale updates."""
    return cartpole_a2c().replace(algo="a3c", workers=2, envs_per_worker=32, learning_rate=7e-4)


def cartpole_a3c_paper() -> Config:
    """A3C in the paper's form: one env per worker, n-step returns, shared RMSprop; numbers tuned for CartPole."""
    return Config().replace(
        env_id="CartPole-v1",
        algo="a3c",
        workers=2,
        envs_per_worker=1,
        num_steps=20,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        optimizer="rmsprop_tf",  # epsilon inside the root, as in the paper
        optimizer_eps=1e-5,
        learning_rate=2e-3,
        learning_rate_schedule="linear",
        gae_lambda=1.0,
        ent_coef=0.01,
        total_env_steps=500_000,
    )


def lecture_a2c() -> Config:
    """The lecture's A2C: one env, one whole episode per update, Monte Carlo returns."""
    return Config().replace(
        env_id="CartPole-v1",
        algo="a2c",
        collect="episodes",
        num_envs=1,
        num_steps=500,
        hidden_sizes=(128, 128),
        activation="relu",
        gae_lambda=1.0,
        normalize_advantage=True,
        learning_rate=3e-4,
        optimizer_eps=1e-8,
        total_env_steps=500_000,
    )


def acrobot_a2c() -> Config:
    """A2C on Acrobot-v1: rewards scaled, so that the critic's gradient does not use up the norm clip."""
    return Config().replace(
        env_id="Acrobot-v1",
        algo="a2c",
        num_envs=16,
        num_steps=16,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=2e-3,
        ent_coef=0.0,
        total_env_steps=300_000,
    )


def acrobot_ppo() -> Config:
    """PPO on Acrobot-v1: scaled rewards, few epochs at a high rate."""
    return Config().replace(
        env_id="Acrobot-v1",
        algo="ppo",
        num_envs=16,
        num_steps=128,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=1e-3,
        ent_coef=0.0,
        num_epochs=4,
        num_minibatches=8,
        normalize_advantage=True,
        total_env_steps=300_000,
    )


def pendulum_ppo() -> Config:
    """PPO on Pendulum-v1: a short horizon, raw rewards, a rate that falls to 0."""
    return Config().replace(
        env_id="Pendulum-v1",
        algo="ppo",
        num_envs=16,
        num_steps=256,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=1e-3,
        learning_rate_schedule="linear",
        gamma=0.9,
        ent_coef=0.0,
        num_epochs=10,
        num_minibatches=32,
        normalize_advantage=True,
        total_env_steps=500_000,
    )


def pendulum_a2c() -> Config:
    """A2C on Pendulum-v1: everything normalised, squashed actions, four updates per rollout; found by a sweep."""
    return Config().replace(
        env_id="Pendulum-v1",
        algo="a2c",
        num_envs=8,
        num_steps=16,
        num_minibatches=4,
        squash_actions=True,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(128, 128),
        activation="relu",
        shared_trunk=False,
        log_std_init=0.425,
        learning_rate=5.01e-4,
        learning_rate_schedule="linear",
        gamma=0.95,
        gae_lambda=0.9,
        vf_coef=0.66,
        ent_coef=7.88e-5,
        normalize_advantage=True,
        max_grad_norm=1.0,
        total_env_steps=500_000,
    )


def masked_cartpole_ppo() -> Config:
    """PPO with an LSTM on CartPole without velocities: whole sequences, rewards scaled, a rate that falls to 0.

    Rewards are scaled because the critic's gradient of raw returns would use up the norm clip of the shared trunk;
    nothing is learned then.
    """
    return Config().replace(
        env_id=MASKED_CARTPOLE,
        algo="ppo",
        num_envs=16,
        num_steps=64,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64,),
        activation="tanh",
        core="lstm",
        lstm_size=64,
        learning_rate=1e-3,
        learning_rate_schedule="linear",
        ent_coef=0.0,
        num_epochs=4,
        num_minibatches=4,
        normalize_advantage=True,
        total_env_steps=100_000,
    )


def lunarlander_ppo() -> Config:
    """PPO on LunarLander-v3: everything normalised, ten passes over short rollouts, a horizon that sees the landing."""
    return Config().replace(
        env_id="LunarLander-v3",
        algo="ppo",
        num_envs=16,
        num_steps=128,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        learning_rate=3e-4,
        gamma=0.999,
        gae_lambda=0.98,
        ent_coef=0.0,
        num_epochs=10,
        num_minibatches=16,
        normalize_advantage=True,
        total_env_steps=1_000_000,
    )


def lunarlander_a2c() -> Config:
    """A2C on LunarLander-v3: a shared network, all normalised, small minibatches, a horizon that sees the landing."""
    return Config().replace(
        env_id="LunarLander-v3",
        algo="a2c",
        num_envs=16,
        num_steps=16,
        num_minibatches=8,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        learning_rate=7e-4,
        learning_rate_schedule="linear",
        gamma=0.995,
        ent_coef=0.01,
        total_env_steps=1_000_000,
    )


def lunarlander_a3c() -> Config:
    """A3C on LunarLander-v3: as A2C, its envs divided by 2 workers."""
    return lunarlander_a2c().replace(algo="a3c", workers=2, envs_per_worker=8, num_minibatches=4)


def lunarlander_continuous_ppo() -> Config:
    """PPO on LunarLanderContinuous-v3: the settings of LunarLander-v3, with a Gaussian over both engines."""
    return lunarlander_ppo().replace(env_id="LunarLanderContinuous-v3")


def mountain_car_continuous_ppo() -> Config:
    """PPO on MountainCarContinuous-v0: actions so wide that clipping makes them full throttle, which finds the goal."""
    return Config().replace(
        env_id="MountainCarContinuous-v0",
        algo="ppo",
        num_envs=32,
        num_steps=256,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        log_std_init=1.0,
        learning_rate=1e-3,
        gamma=0.999,
        gae_lambda=0.98,
        ent_coef=0.0,
        num_epochs=10,
        num_minibatches=16,
        normalize_advantage=True,
        total_env_steps=500_000,
    )


CLASSIC: tuple[Preset, ...] = (
    Preset("CartPole-v1", "a2c", 475.0, cartpole_a2c),
    Preset("CartPole-v1", "a2c-fast", 475.0, cartpole_a2c_fast),
    Preset("CartPole-v1", "ppo", 475.0, cartpole_ppo),
    Preset("CartPole-v1", "a3c", 475.0, cartpole_a3c),
    Preset("CartPole-v1", "a3c-paper", 475.0, cartpole_a3c_paper),
    Preset("CartPole-v1", "lecture", 475.0, lecture_a2c),
    Preset("Acrobot-v1", "a2c", -100.0, acrobot_a2c),
    Preset("Acrobot-v1", "ppo", -100.0, acrobot_ppo),
    Preset(MASKED_CARTPOLE, "ppo", 475.0, masked_cartpole_ppo),
    Preset("Pendulum-v1", "a2c", -200.0, pendulum_a2c),
    Preset("Pendulum-v1", "ppo", -200.0, pendulum_ppo),
    Preset("LunarLander-v3", "a2c", 200.0, lunarlander_a2c),
    Preset("LunarLander-v3", "a3c", 200.0, lunarlander_a3c),
    Preset("LunarLander-v3", "ppo", 200.0, lunarlander_ppo),
    Preset("LunarLanderContinuous-v3", "ppo", 200.0, lunarlander_continuous_ppo),
    Preset("MountainCarContinuous-v0", "ppo", 90.0, mountain_car_continuous_ppo),
)
