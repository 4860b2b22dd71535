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
from fastac.build.worker import build_rule, build_worker, check_device, pick_critic
from fastac.config import Config
from fastac.contract import Alone, Group, VecEnv
from fastac.learning.host_sum import HostSum, build_host_sum
from fastac.learning.optimizer import LocalOptimizer, Optimizer, SharedOptimizer, flat_size
from fastac.models import ActorCritic, ObsNormalizer
from fastac.processes import ANSWER_TIMEOUT_S
from fastac.workers import (
    CommandMemory,
    Division,
    GroupMemory,
    Hosts,
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
# The environment stream and the action seed of each of a worker's shards.
_Seeds: TypeAlias = Sequence[tuple[np.random.SeedSequence, int]]


def assemble_sync(
    config: Config,
    seed: np.random.SeedSequence,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    hosts: Hosts | None = None,
) -> SyncTraining:
    """Assemble a run whose workers are in step, or this host's part of it; see `assemble`."""
    share, seeds = shard_config(config, env_factory), shard_seeds(config, seed)
    division = _divide(config, hosts)
    first, *others = [seeds[numbers.start : numbers.stop] for numbers in division.workers]
    makes: list[_MakeFrom] = [partial(_make_worker, share, each, env_factory, encoder) for each in others]
    with ExitStack() as opened:
        why = why_sync(config) if config.num_shards > 1 else "as asked"
        envs = _open_envs(share, first, env_factory, why, opened)
        training = _build_first(config, share, envs, [action_seed for _, action_seed in first], makes, encoder, hosts)
        opened.pop_all()
    return training


def _divide(config: Config, hosts: Hosts | None) -> Division:
    size, rank = (1, 0) if hosts is None else (hosts.size, hosts.rank)
    return Division.divide(config.num_shards, config.num_workers, size, rank)


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
    rule, max_norm, critic = build_rule(share.optim), share.optim.max_grad_norm, pick_critic(share.optim, model)
    optimizer: Optimizer = (
        SharedOptimizer(model, rule, max_norm, group, group.grads, group.vectors, _build_host_sum(share, group), critic)
        if isinstance(group, SharedGroup)
        else LocalOptimizer(model, rule, max_norm, len(envs), critic)
    )
    return build_worker(share, envs, model, optimizer, action_seeds, group)


def _build_host_sum(share: Config, group: SharedGroup) -> HostSum | None:
    """Build what adds up the gradients of several hosts; None for one."""
    hosts, run = group.division.hosts, share.run
    if len(hosts) == 1:
        return None
    return build_host_sum(run.exchange, run.sync_every, group.nodes, group.grads[0], hosts, group, group.hosts)


def _build_first(
    config: Config,
    share: Config,
    envs: Sequence[VecEnv],
    action_seeds: Sequence[int],
    makes: Sequence[_MakeFrom],
    encoder: EncoderFactory | None,
    hosts: Hosts | None = None,
) -> SyncTraining:
    """Start the other workers, if there are any, and build the first worker while they start.

    The seed alone does not make all models equal: a user's encoder may draw from other streams.
    """
    model = build_model(share.model, envs[0], Streams.spawn(config.run.seed).model, encoder)
    if hosts is not None:  # a user's encoder may draw from other streams on each
        model.load_state_dict(hosts.broadcast(model.state_dict(), 0))
    if not makes:
        group = Alone(len(envs)) if hosts is None else _group_among(config, share, model, hosts)
        own = _build_own(share, envs, model, action_seeds, group)
        return _to_training(config, own, NoOtherWorkers(), hosts)
    division = _divide(config, hosts)
    memory, state = allocate_memory(division, share, model), model.state_dict()
    commands = CommandMemory.allocate(len(division.workers), max(map(len, division.workers)) * share.batch_size)
    sent: list[MakeWorker] = [partial(make, state) for make in makes]
    start_s, wait_s = share.env.start_timeout_s, share.env.env_timeout_s or ANSWER_TIMEOUT_S
    others = SyncWorkers(sent, memory, commands, start_s, wait_s, hosts)
    try:
        own = _build_own(share, envs, model, action_seeds, others.group)
        others.wait_ready()
    except BaseException:
        others.close()
        raise
    return _to_training(config, own, others, hosts)


def _group_among(config: Config, share: Config, model: ActorCritic, hosts: Hosts) -> SharedGroup:
    """Build the group of a host's only worker."""
    group = SharedGroup(allocate_memory(_divide(config, hosts), share, model), 0, _wait_for_nobody, hosts)
    if share.run.device != "cpu":
        group.move_gradients(check_device(share.run.device))
    return group


def _wait_for_nobody(waited_s: float) -> None:
    """Do nothing: a host's only worker waits for no other."""


def allocate_memory(division: Division, share: Config, model: ActorCritic) -> GroupMemory:
    """Allocate the shared memory of a host's workers; `share` is the configuration of one shard."""
    # The largest exchanged rows: the observation statistics, or the moments of an epoch's minibatches.
    normalizer = model.obs_normalizer
    num_statistics = len(normalizer.moments.dump()) if isinstance(normalizer, ObsNormalizer) else 0
    most_bytes = 8 * max(num_statistics, 5 * share.algo.num_minibatches, 8)
    slots, run = build_rule(share.optim).slots, share.run
    return GroupMemory.allocate(division, most_bytes, flat_size(model), slots, run.exchange, run.sync_every)


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


def _to_training(
    config: Config, own: Worker, others: SyncWorkers | NoOtherWorkers, hosts: Hosts | None = None
) -> SyncTraining:
    trainer = SyncTrainer(config, own.shards[0].envs.frame_skip, own, others, hosts)
    return SyncTraining(own, others, trainer, config.num_shards, hosts)
