"""Builds a run whose workers are in step: A2C, PPO and REINFORCE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastac.build.environments import EnvFactory, Streams, build_envs, worker_seeds
from fastac.build.network import EncoderFactory, build_model
from fastac.build.shares import why_sync, worker_share
from fastac.build.worker import build_rule, build_worker, check_device
from fastac.config import Config
from fastac.contract import Alone, Group, VecEnv
from fastac.kernels import num_blocks
from fastac.learning.optimizer import LocalOptimizer, Optimizer, SharedOptimizer, flat_size
from fastac.models import ActorCritic
from fastac.processes import ANSWER_TIMEOUT_S
from fastac.workers import (
    GroupMemory,
    MakeWorker,
    NoOtherWorkers,
    SharedGroup,
    SyncTrainer,
    SyncTraining,
    SyncWorkers,
    Worker,
)

# Builds a worker whose model begins with a given state.
_MakeFrom: TypeAlias = Callable[[Mapping[str, Tensor], Group], Worker]


def _make_worker(
    share: Config,
    env_seed: np.random.SeedSequence,
    action_seed: int,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    state: Mapping[str, Tensor],
    group: Group,
) -> Worker:
    """Build a worker in its own process; its model begins with the `state` of the first worker's."""
    torch.set_num_threads(share.run.torch_threads)
    envs = build_envs(share.env, env_seed, env_factory)
    model = build_model(share.model, envs, Streams.spawn(share.run.seed).model, encoder)
    model.load_state_dict(state)
    return _build_own(share, envs, model, action_seed, group)


def _build_own(config: Config, envs: VecEnv, model: ActorCritic, action_seed: int, group: Group) -> Worker:
    """Build a worker around its environments and its model; several workers train theirs together."""
    model = model.to(check_device(config.run.device))
    rule, max_norm = build_rule(config.optim), config.optim.max_grad_norm
    optimizer: Optimizer = (
        SharedOptimizer(model, rule, max_norm, group, group.grads, group.vectors)
        if isinstance(group, SharedGroup)
        else LocalOptimizer(model, rule, max_norm)
    )
    return build_worker(config, envs, model, optimizer, action_seed, group)


def _build_first(
    config: Config, share: Config, envs: VecEnv, makes: list[_MakeFrom], encoder: EncoderFactory | None
) -> SyncTraining:
    """Start the other workers, and build the first worker while they start.

    The seed alone does not make all models equal: a user's encoder may draw from other streams.
    """
    streams = Streams.spawn(config.run.seed)
    model = build_model(share.model, envs, streams.model, encoder)
    memory, state = allocate_memory(share, len(makes) + 1, model, envs), model.state_dict()
    sent: list[MakeWorker] = [partial(make, state) for make in makes]
    others = SyncWorkers(sent, memory, share.env.start_timeout_s, share.env.env_timeout_s or ANSWER_TIMEOUT_S)
    try:
        own = _build_own(share, envs, model, streams.actions, others.group)
        others.wait_ready()
    except BaseException:
        others.close()
        raise
    return _to_training(config, own, others)


def allocate_memory(share: Config, size: int, model: ActorCritic, envs: VecEnv) -> GroupMemory:
    """Allocate the shared memory of `size` workers; `share` and `model` are those of one worker."""
    # The largest exchanged array: the observation statistics, the squares of a gradient's blocks, or a few numbers.
    params = flat_size(model)
    statistics = 2 * int(np.prod(envs.single_observation_space.shape or ())) + 1
    most_bytes = 8 * max(statistics, num_blocks(params), 8)
    return GroupMemory.allocate(size, most_bytes, share.batch_size, params, build_rule(share.optim).slots)


def build(config: Config, envs: VecEnv, encoder: EncoderFactory | None = None) -> SyncTraining:
    """Assemble a run with one worker around its environments.

    Args:
        config: the run's configuration.
        envs: from `build_envs`; stepped by the trainer.
        encoder: builds a custom encoder instead of the configured layers.

    Raises:
        ValueError: the device does not exist, or the encoder does not fit.
    """
    streams = Streams.spawn(config.run.seed)
    model = build_model(config.model, envs, streams.model, encoder)
    own = _build_own(config, envs, model, streams.actions, Alone())
    return _to_training(config, own, NoOtherWorkers())


def _to_training(config: Config, own: Worker, others: SyncWorkers | NoOtherWorkers) -> SyncTraining:
    return SyncTraining(own, others, SyncTrainer(config.run.total_env_steps, own.envs.frame_skip, own, others))


def assemble_sync(
    config: Config,
    seed: np.random.SeedSequence,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
) -> SyncTraining:
    """Assemble a run whose workers are in step; see `assemble`."""
    workers = config.run.workers
    assert isinstance(workers, int), "resolve_workers first"
    if workers == 1:
        return _closing(build_envs(config.env, seed, env_factory), lambda envs: build(config, envs, encoder))
    share, seeds = worker_share(config, env_factory), worker_seeds(config, seed)
    makes: list[_MakeFrom] = [
        partial(_make_worker, share, env_seed, action_seed, env_factory, encoder) for env_seed, action_seed in seeds[1:]
    ]
    envs = build_envs(share.env, seeds[0][0], env_factory, why_sync(config))
    return _closing(envs, lambda envs: _build_first(config, share, envs, makes, encoder))


def _closing(envs: VecEnv, build_around: Callable[[VecEnv], SyncTraining]) -> SyncTraining:
    try:
        return build_around(envs)
    except BaseException:
        envs.close()
        raise
