"""The one configuration that the timed benchmarks share, and its parts; measures nothing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fastac.apply import LocalApply
from fastac.build import Parts, allocate_rollout, build, build_envs, build_model, build_optimizer
from fastac.config import Config
from fastac.contract import VecEnv
from fastac.learner import Learner
from fastac.losses import policy_gradient
from fastac.models import ActorCritic
from fastac.rollout import Collector, FlatMinibatches, Rollout

NUM_ENVS = (64, 256, 1024, 4096)
_CPU = torch.device("cpu")


def lecture_net(num_envs: int) -> Config:
    """A2C on CartPole-v1 with the lecture's network: one trunk, 128-128 ReLU."""
    return Config().replace(
        env_id="CartPole-v1",
        algo="a2c",
        num_envs=num_envs,
        num_steps=16,
        hidden_sizes=(128, 128),
        activation="relu",
        shared_trunk=True,
        # Below what float32 weights can take in: the policy stays the untrained one, and with it the
        # share of resets, however long is measured. An update costs the same at any rate.
        learning_rate=1e-12,
        total_env_steps=10**12,
    )


def cartpoles(config: Config) -> VecEnv:
    return build_envs(config.env, np.random.SeedSequence(0))


def whole_run(config: Config) -> Parts:
    return build(config, cartpoles(config))


def collecting(config: Config) -> tuple[Collector, ActorCritic]:
    envs = cartpoles(config)
    model = build_model(config.model, envs)
    rollout = allocate_rollout(config, envs, model.state_size)
    return Collector(envs, model, rollout, torch.Generator().manual_seed(0), _CPU), model


def learning(config: Config, model: ActorCritic) -> Learner:
    apply = LocalApply(model, build_optimizer(config.optim, model), config.optim.max_grad_norm)
    minibatches = FlatMinibatches(config.algo.num_minibatches, torch.Generator().manual_seed(0))
    return Learner(config, model, policy_gradient, minibatches, apply, _CPU)


def random_actions(num_steps: int, num_envs: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 2, size=(num_steps, num_envs))  # [T, N]


def count_valid(rollout: Rollout) -> int:
    return int(np.count_nonzero(rollout.valid.numpy()))
