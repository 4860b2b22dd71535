"""MuJoCo's robots: PPO, A2C with the settings of Tianshou's benchmark, and A2C with fewer environments."""

from __future__ import annotations

from functools import partial

from fastac.config import Config
from fastac.presets.preset import Preset

ROBOTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")


def _robot(env_id: str) -> Config:
    """Common settings of Tianshou's benchmark: separate networks, small first actions, a rate that falls to 0."""
    return Config().replace(
        env_id=env_id,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        log_std_init=-0.5,
        learning_rate_schedule="linear",
        gamma=0.99,
        gae_lambda=0.95,
        max_grad_norm=0.5,
        total_env_steps=1_000_000,
    )


def mujoco_a2c_published(env_id: str) -> Config:
    """A2C as published: 16 envs of 5 steps, torch's RMSprop, small first actions, a rate that falls to 0.

    Source: Tianshou, examples/mujoco/mujoco_a2c.py (Weng et al. 2022, JMLR 23). Two things differ. There, the rate
    falls to 0 over 3 million steps; here, over 1 million. And Tianshou scales returns for the critic only; here,
    rewards are scaled, so the same entropy bonus weighs more relative to the smaller advantages.
    """
    return _robot(env_id).replace(
        algo="a2c",
        num_envs=16,
        num_steps=5,
        optimizer="rmsprop",
        optimizer_eps=1e-5,
        learning_rate=7e-4,
        ent_coef=0.01,
        vf_coef=0.5,
    )


def mujoco_a2c(env_id: str) -> Config:
    """A2C: the published settings with 4 envs of 8 steps, which is more and smaller updates, and no entropy bonus."""
    return mujoco_a2c_published(env_id).replace(num_envs=4, num_steps=8, ent_coef=0.0)


def mujoco_ppo(env_id: str) -> Config:
    """PPO: 8 envs of 256 steps, 10 epochs of minibatches of 64, a rate that falls to 0.

    Source: Tianshou, examples/mujoco/mujoco_ppo.py (Weng et al. 2022, JMLR 23), which has 64 envs of 32 steps.
    """
    return _robot(env_id).replace(
        algo="ppo",
        num_envs=8,
        num_steps=256,
        num_epochs=10,
        num_minibatches=32,
        normalize_advantage=True,
        clip_coef=0.2,
        learning_rate=3e-4,
        ent_coef=0.0,
        vf_coef=0.25,
    )


def ant_ppo(env_id: str) -> Config:
    """PPO, without the 78 contact forces that only Ant-v5 shows; with them it stays at a third of the return.

    Ant-v3 shows zeros in their place and Ant-v4 leaves them out, so published figures are without them.
    """
    return mujoco_ppo(env_id).replace(env_kwargs={"include_cfrc_ext_in_observation": False})


_MAKE = {"ppo": mujoco_ppo, "a2c": mujoco_a2c, "a2c-published": mujoco_a2c_published}
_OWN = {("Ant-v5", "ppo"): ant_ppo}
_UNMEASURED = {("Walker2d-v5", "a2c"), ("Walker2d-v5", "a2c-published")}

MUJOCO: tuple[Preset, ...] = tuple(
    Preset(robot, name, None, partial(_OWN.get((robot, name), make), robot))
    for robot in ROBOTS
    for name, make in _MAKE.items()
    if (robot, name) not in _UNMEASURED
)
