"""Builds one worker; a run with one worker consists of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import nn

from fastac.build.engine import EngineBuilder
from fastac.config import Config, OptimConfig
from fastac.contract import Group, VecEnv
from fastac.envs import observation_dtype
from fastac.learning.learner import Learner
from fastac.learning.objectives import Gradient
from fastac.learning.optimizer import Optimizer
from fastac.learning.update_rules import Adam, RMSprop, UpdateRule
from fastac.models import (
    ActorCritic,
    NoRewardNormalizer,
    RewardClipper,
    RewardNormalizer,
    RewardScaler,
    RunningMoments,
)
from fastac.rollout import Collector, FlatMinibatches, Rollout, SequenceMinibatches
from fastac.workers import Shard, Worker


def build_worker(
    config: Config,
    envs: Sequence[VecEnv],
    model: ActorCritic,
    optimizer: Optimizer,
    action_seeds: Sequence[int],
    group: Group,
) -> Worker:
    """Build a worker around its model and its shards' environments.

    `optimizer` must be built before: its `flatten` makes every `p.grad` a view of one flat vector, and the objective
    and the fused network built here keep those views.

    Args:
        config: the configuration of one shard.
        envs: of each of its shards.
        model: the policy.
        optimizer: updates the model.
        action_seeds: of each of its shards: for its actions and the order of its minibatches.
        group: its shards among all.
    """
    engines = EngineBuilder(config, model, check_device(config.run.device))
    slicing = SequenceMinibatches if config.model.is_recurrent else FlatMinibatches
    shards: list[Shard] = []
    gradients: list[Gradient] = []
    minibatches: list[FlatMinibatches | SequenceMinibatches] = []
    moments = RunningMoments(())
    nbytes = 0
    for number, its_envs, action_seed in zip(group.shards, envs, action_seeds, strict=True):
        generator = torch.Generator().manual_seed(action_seed)
        rollout = allocate_rollout(config, its_envs, model.state_size)
        actor, gradient = engines.build(rollout, generator)
        gradients.append(gradient)
        keeps_value = config.algo.clip_value_coef is not None
        minibatches.append(slicing(config.algo.num_minibatches, generator, keeps_value))
        nbytes += minibatches[-1].nbytes(rollout)
        reward_normalizer = build_reward_normalizer(config, moments)
        collector, first_env = Collector(its_envs, actor, rollout), number * config.env.num_envs
        shards.append(Shard(config.algo.collect, its_envs, collector, reward_normalizer, first_env))
    learner = Learner(config, gradients, minibatches, optimizer, group)
    return Worker(model, shards, learner, group, nbytes + engines.nbytes)


def build_reward_normalizer(config: Config, moments: RunningMoments | None = None) -> RewardScaler:
    """Build the reward scaling of a shard's environments; shards of one worker have the same `moments`."""
    if config.model.normalize_reward:
        return RewardNormalizer(config.env.num_envs, config.algo.gamma, moments)
    return RewardClipper() if config.env.clip_rewards else NoRewardNormalizer()


def build_rule(config: OptimConfig) -> UpdateRule:
    """Build the optimiser's update rule."""
    if config.optimizer == "adam":
        return Adam(config.optimizer_eps)
    return RMSprop(config.optimizer_eps, tensorflow=config.optimizer == "rmsprop_tf")


def pick_critic(config: OptimConfig, model: ActorCritic) -> list[nn.Parameter]:
    """Return the parameters that have the critic's learning rate; none if it is the same."""
    return [] if config.critic_learning_rate is None else model.critic_parameters()


def allocate_rollout(config: Config, envs: VecEnv, state_size: int) -> Rollout:
    """Allocate the rollout of a run."""
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    assert obs_space.shape is not None and action_space.shape is not None
    return Rollout.allocate(
        config.algo.num_steps,
        config.env.num_envs,
        obs_space.shape if envs.frame_stack == 1 else obs_space.shape[1:],
        action_space.shape,
        torch.float32 if isinstance(action_space, Box) else torch.int64,
        state_size,
        pin=config.run.device != "cpu",
        obs_dtype=torch.from_numpy(np.empty(0, observation_dtype(obs_space))).dtype,
        frame_stack=envs.frame_stack,
    )


def check_device(name: str) -> torch.device:
    """Return the device; a CUDA device becomes the current one.

    Raises:
        ValueError: the device does not exist on this machine.
    """
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"devices of type {device.type} are not supported")
        device = torch.zeros(1, device=device).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels and captured graphs run on the current device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which this machine or torch build does not offer: use cpu.") from error
    return device
