"""One worker's part of a run, which in a run with one worker is all of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.spaces import Box

from fastac.learning.optimizer import Adam, Apply, RMSprop, Rule
from fastac.build.engine import build_engine
from fastac.build.network import load_module
from fastac.config import Config, OptimConfig
from fastac.contract import Group, StateTree, VecEnv, read_branch
from fastac.envs import observation_dtype
from fastac.learning.learner import Learner
from fastac.models import ActorCritic, NoRewardNormalizer, RewardClipper, RewardNormalizer, RewardScaler
from fastac.rollout import Collector, FlatMinibatches, Rollout, SequenceMinibatches
from fastac.workers import Facts, Pair


@dataclass(slots=True)
class WorkerParts:
    """What every worker has: its environments, its model, and the pair that runs them.

    Attributes:
        envs: stepped by the pair.
        model: the policy, equal in all workers that are in step.
        rollout: the storage.
        activations_nbytes: memory besides it: what acting leaves behind for learning, the updates' own, a
            minibatch, the rollout's noise and episodes.
        reward_normalizer: with this worker's returns so far.
        pair: collects and learns.
    """

    envs: VecEnv
    model: ActorCritic
    rollout: Rollout
    activations_nbytes: int
    reward_normalizer: RewardScaler
    pair: Pair

    def get_state(self) -> StateTree:
        """What is this worker's own."""
        own = {name: part for name, part in self.pair.get_state().items() if name != "learner"}
        return {"reward_normalizer": self.reward_normalizer.state_dict(), **own}

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state` and what is everybody's; return whether the environments continue too."""
        load_module(self.model, read_branch(state, "model"))
        load_module(self.reward_normalizer, read_branch(state, "reward_normalizer"))
        return self.pair.set_state(state)

    def facts(self) -> Facts:
        """What another process wants to know of it."""
        return Facts(self.envs.description, self.rollout.nbytes, self.activations_nbytes)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def build_worker(
    config: Config, envs: VecEnv, model: ActorCritic, apply: Apply, action_seed: int, group: Group
) -> WorkerParts:
    """Build one worker's part around its model, out of its share of the configuration.

    `apply` comes first: it moves the model's parameters, and what runs the model keeps to where they are.
    """
    generator = torch.Generator().manual_seed(action_seed)
    rollout = allocate_rollout(config, envs, model.state_size)
    actor, gradient, nbytes = build_engine(config, model, rollout, generator, check_device(config.run.device))
    slicing = SequenceMinibatches if config.model.core == "lstm" else FlatMinibatches
    minibatches = slicing(config.algo.num_minibatches, generator)
    learner = Learner(config, gradient, minibatches, apply, group)
    reward_normalizer = build_reward_normalizer(config)
    collector = Collector(envs, actor, rollout)
    pair = Pair(config.algo.collect, envs, collector, learner, model.obs_normalizer, reward_normalizer, group)
    nbytes += minibatches.nbytes(rollout) + pair.nbytes
    return WorkerParts(envs, model, rollout, nbytes, reward_normalizer, pair)


def build_reward_normalizer(config: Config) -> RewardScaler:
    """Build what scales the rewards of all environments."""
    if config.model.normalize_reward:
        return RewardNormalizer(config.env.num_envs, config.algo.gamma)
    return RewardClipper() if config.env.clip_rewards else NoRewardNormalizer()


def build_rule(config: OptimConfig) -> Rule:
    """Build the optimiser's rule."""
    if config.optimizer == "adam":
        return Adam(config.optimizer_eps)
    return RMSprop(config.optimizer_eps, tensorflow=config.optimizer == "rmsprop_tf")


def allocate_rollout(config: Config, envs: VecEnv, state_size: int) -> Rollout:
    """Allocate the run's one rollout."""
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
    """Return the device.

    Raises:
        ValueError: no such device on this machine.
    """
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"devices of type {device.type} are not supported")
        device = torch.zeros(1, device=device).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels and captured graphs go where the current device is
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which this machine or torch build does not offer: use cpu.") from error
    return device
