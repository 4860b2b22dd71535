"""Builds one worker; a run with one worker consists of it."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium.spaces import Box

from fastac.build.engine import build_engine
from fastac.config import Config, OptimConfig
from fastac.contract import Group, VecEnv
from fastac.envs import observation_dtype
from fastac.learning.learner import Learner
from fastac.learning.optimizer import Adam, Optimizer, RMSprop, UpdateRule
from fastac.models import ActorCritic, NoRewardNormalizer, RewardClipper, RewardNormalizer, RewardScaler
from fastac.rollout import Collector, FlatMinibatches, Rollout, SequenceMinibatches
from fastac.workers import Worker


def build_worker(
    config: Config, envs: VecEnv, model: ActorCritic, optimizer: Optimizer, action_seed: int, group: Group
) -> Worker:
    """Build a worker around its model, from its share of the configuration.

    `optimizer` must be built before: its `flatten` makes every `p.grad` a view of one flat vector, and the objective
    and the fused network built here keep those views.
    """
    generator = torch.Generator().manual_seed(action_seed)
    rollout = allocate_rollout(config, envs, model.state_size)
    actor, gradient, nbytes = build_engine(config, model, rollout, generator, check_device(config.run.device))
    slicing = SequenceMinibatches if config.model.is_recurrent else FlatMinibatches
    minibatches = slicing(config.algo.num_minibatches, generator)
    learner = Learner(config, gradient, minibatches, optimizer, group)
    reward_normalizer = build_reward_normalizer(config)
    collector = Collector(envs, actor, rollout)
    nbytes += minibatches.nbytes(rollout)
    return Worker(config.algo.collect, envs, model, collector, learner, reward_normalizer, group, nbytes)


def build_reward_normalizer(config: Config) -> RewardScaler:
    """Build the reward scaling of all environments."""
    if config.model.normalize_reward:
        return RewardNormalizer(config.env.num_envs, config.algo.gamma)
    return RewardClipper() if config.env.clip_rewards else NoRewardNormalizer()


def build_rule(config: OptimConfig) -> UpdateRule:
    """Build the optimiser's update rule."""
    if config.optimizer == "adam":
        return Adam(config.optimizer_eps)
    return RMSprop(config.optimizer_eps, tensorflow=config.optimizer == "rmsprop_tf")


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
