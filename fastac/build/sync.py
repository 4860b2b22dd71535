"""Builds a run whose workers are in step: A2C, PPO and REINFORCE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastac.build.environments import EnvFactory, Streams, build_envs, shard_seeds
from fastac.build.network import EncoderFactory, build_model
from fastac.build.shares import shard_config, why_sync
from fastac.build.worker import build_rule, build_worker, check_device
from fastac.config import Config
from fastac.contract import Alone, Group, VecEnv
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
    divide_shards,
)

# Builds a worker whose model begins with a given state.
_MakeFrom: TypeAlias = Callable[[Mapping[str, Tensor], Group], Worker]
# The environment stream and the action seed of each of a worker's shards.
_Seeds: TypeAlias = Sequence[tuple[np.random.SeedSequence, int]]


def assemble_sync(
    config: Config,
    seed: np.random.SeedSequence,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
) -> SyncTraining:
    """Assemble a run whose workers are in step; see `assemble`."""
    workers, shards = config.num_workers, config.num_shards
    share, seeds = shard_config(config, env_factory), shard_seeds(config, seed)
    first, *others = [seeds[numbers.start : numbers.stop] for numbers in divide_shards(shards, workers)]
    makes: list[_MakeFrom] = [partial(_make_worker, share, each, env_factory, encoder) for each in others]
    with ExitStack() as opened:
        envs = _open_envs(share, first, env_factory, why_sync(config) if shards > 1 else "as asked", opened)
        training = _build_first(config, share, envs, [action_seed for _, action_seed in first], makes, encoder)
        opened.pop_all()
    return training


def _open_envs(
    share: Config, seeds: _Seeds, env_factory: EnvFactory | None, why: str, opened: ExitStack
) -> list[VecEnv]:
    """Build the environments of a worker's shards; `opened` closes those that were built if one fails."""
    envs: list[VecEnv] = []
    for env_seed, _ in seeds:
        envs.append(build_envs(share.env, env_seed, env_factory, why))
        opened.callback(envs[-1].close)
    return envs


def _make_worker(
    share: Config,
    seeds: _Seeds,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    state: Mapping[str, Tensor],
    group: Group,
) -> Worker:
    """Build a worker in its own process; its model begins with the `state` of the first worker's."""
    torch.set_num_threads(share.run.torch_threads)
    with ExitStack() as opened:
        envs = _open_envs(share, seeds, env_factory, "as asked", opened)
        model = build_model(share.model, envs[0], Streams.spawn(share.run.seed).model, encoder)
        model.load_state_dict(state)
        worker = _build_own(share, envs, model, [action_seed for _, action_seed in seeds], group)
        opened.pop_all()
    return worker


def _build_own(
    share: Config, envs: Sequence[VecEnv], model: ActorCritic, action_seeds: Sequence[int], group: Group
) -> Worker:
    """Build a worker around its environments and its model; several workers train theirs together."""
    model = model.to(check_device(share.run.device))
    rule, max_norm = build_rule(share.optim), share.optim.max_grad_norm
    optimizer: Optimizer = (
        SharedOptimizer(model, rule, max_norm, group, group.grads, group.vectors)
        if isinstance(group, SharedGroup)
        else LocalOptimizer(model, rule, max_norm, len(envs))
    )
    return build_worker(share, envs, model, optimizer, action_seeds, group)


def _build_first(
    config: Config,
    share: Config,
    envs: Sequence[VecEnv],
    action_seeds: Sequence[int],
    makes: Sequence[_MakeFrom],
    encoder: EncoderFactory | None,
) -> SyncTraining:
    """Start the other workers, if there are any, and build the first worker while they start.

    The seed alone does not make all models equal: a user's encoder may draw from other streams.
    """
    model = build_model(share.model, envs[0], Streams.spawn(config.run.seed).model, encoder)
    if not makes:
        own = _build_own(share, envs, model, action_seeds, Alone(len(envs)))
        return _to_training(config, own, NoOtherWorkers())
    memory, state = allocate_memory(config, share, model, envs[0]), model.state_dict()
    sent: list[MakeWorker] = [partial(make, state) for make in makes]
    others = SyncWorkers(sent, memory, share.env.start_timeout_s, share.env.env_timeout_s or ANSWER_TIMEOUT_S)
    try:
        own = _build_own(share, envs, model, action_seeds, others.group)
        others.wait_ready()
    except BaseException:
        others.close()
        raise
    return _to_training(config, own, others)


def allocate_memory(config: Config, share: Config, model: ActorCritic, envs: VecEnv) -> GroupMemory:
    """Allocate the shared memory of a run's workers; `share` and `envs` are those of one shard."""
    workers, shards = config.num_workers, config.num_shards
    # The largest exchanged rows: the observation statistics, or a few numbers.
    most_bytes = 8 * max(2 * int(np.prod(envs.single_observation_space.shape or ())) + 1, 8)
    most_episodes = max(map(len, divide_shards(shards, workers))) * share.batch_size
    slots = build_rule(share.optim).slots
    return GroupMemory.allocate(workers, shards, most_bytes, most_episodes, flat_size(model), slots)


def build(config: Config, envs: VecEnv, encoder: EncoderFactory | None = None) -> SyncTraining:
    """Assemble a run with one worker and one shard around its environments.

    Args:
        config: the run's configuration.
        envs: from `build_envs`; stepped by the trainer.
        encoder: builds a custom encoder instead of the configured layers.

    Raises:
        ValueError: the device does not exist, or the encoder does not fit.
    """
    one = config.replace(workers=1, shards=1)
    return _build_first(one, one, [envs], [Streams.spawn(config.run.seed).actions], [], encoder)


def _to_training(config: Config, own: Worker, others: SyncWorkers | NoOtherWorkers) -> SyncTraining:
    trainer = SyncTrainer(config.run.total_env_steps, own.shards[0].envs.frame_skip, own, others)
    return SyncTraining(own, others, trainer, config.num_shards)
