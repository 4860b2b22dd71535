"""MuJoCo's robots: A2C with the settings of Tianshou's benchmark (Weng et al. 2022, JMLR 23, `examples/mujoco`)."""

from __future__ import annotations

from functools import partial

from fastac.config import Config
from fastac.presets.preset import Preset

ROBOTS = ("HalfCheetah-v5", "Hopper-v5", "Ant-v5")


def mujoco_a2c(env_id: str) -> Config:
    """A2C as published: 16 envs of 5 steps, torch's RMSprop, small first actions, a rate that falls to 0.

    The published runs are of 3 million steps, at whose end their rate is 0; here it is 0 after 1 million. They scale
    returns for the critic alone, here rewards are scaled for both.
    """
    return Config().replace(
        env_id=env_id,
        algo="a2c",
        num_envs=16,
        num_steps=5,
        normalize_obs=True,
        normalize_reward=True,
        hidden_sizes=(64, 64),
        activation="tanh",
        shared_trunk=False,
        log_std_init=-0.5,
        optimizer="rmsprop",
        optimizer_eps=1e-5,
        learning_rate=7e-4,
        learning_rate_schedule="linear",
        gae_lambda=0.95,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=0.5,
        total_env_steps=1_000_000,
        eval_every=100_000,
        eval_episodes=20,
    )


MUJOCO: tuple[Preset, ...] = tuple(Preset(robot, "a2c", None, partial(mujoco_a2c, robot)) for robot in ROBOTS)
