"""Builds a run whose workers do not wait for each other: A3C."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastac.build.environments import (
    EnvFactory,
    Streams,
    build_envs,
    build_evaluation_envs,
    evaluation_seed,
    replacement_seeds,
    shard_seeds,
)
from fastac.build.network import EncoderFactory, build_model
from fastac.build.shares import shard_config, why_sync
from fastac.build.worker import build_reward_normalizer, build_rule, build_worker, pick_critic
from fastac.config import Config
from fastac.contract import VecEnv
from fastac.learning.optimizer import HogwildOptimizer, flatten
from fastac.shared_memory import ProcessLock
from fastac.workers import (
    AsyncWorkers,
    BeatingEnvs,
    HogwildTrainer,
    HogwildTraining,
    HogwildWorker,
    MakeHogwildWorker,
    SharedCounters,
    WorkerCounters,
    find_moments,
)


def assemble_hogwild(
    config: Config,
    seed: np.random.SeedSequence,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
) -> HogwildTraining:
    """Assemble a run whose workers do not wait for each other; each has one shard. See `assemble`."""
    share, seeds = shard_config(config, env_factory), shard_seeds(config, seed)
    why = why_sync(config)

    def make(state: Mapping[str, Tensor], worker: int, replaced: int) -> MakeHogwildWorker:
        """Describe a worker; a replacement for a lost worker gets random streams of its own."""
        streams = replacement_seeds(seed, replaced) if replaced else seeds[worker]
        return partial(_make_worker, share, *streams, why, env_factory, encoder, state)

    # Only its spaces are needed. It is closed at once: some simulators cannot be open here and in a worker.
    envs = build_evaluation_envs(config.env, 1, evaluation_seed(config.run.seed, 0), env_factory)
    envs.close()
    return _assemble_around(config, share, envs, make, encoder)


def _assemble_around(
    config: Config,
    share: Config,
    envs: VecEnv,
    make: Callable[[Mapping[str, Tensor], int, int], MakeHogwildWorker],
    encoder: EncoderFactory | None,
) -> HogwildTraining:
    """Start the workers, and build the parts that this process needs."""
    model = build_model(config.model, envs, Streams.spawn(config.run.seed).model, encoder)
    state = model.state_dict()
    param, _ = flatten(model)  # `state` keeps the tensors of before
    reward_normalizer = build_reward_normalizer(share)
    widths = {name: moments.mean.numel() for name, moments in find_moments(model, reward_normalizer).items()}
    counters = SharedCounters.allocate(config.num_workers, param.numel(), build_rule(config.optim).slots, widths)
    shared = counters.parameters.vectors()
    shared.param.copy_(param)
    lock = ProcessLock() if config.run.lock else nullcontext()
    workers = AsyncWorkers(
        counters,
        partial(make, state),
        lock,
        config.run.total_env_steps,
        config.run.max_restarts,
        config.env.start_timeout_s,
        config.env.env_timeout_s,
    )
    return HogwildTraining(
        envs=envs,
        model=model,
        trainer=HogwildTrainer(config.run.total_env_steps, envs.frame_skip, counters, workers),
        rollouts=[],
        info=workers.wait_ready(),
        _reward_normalizer=reward_normalizer,
        _param=param,
        _shared=shared,
        _counters=counters,
        _workers=workers,
    )


def _make_worker(
    share: Config,
    env_seed: np.random.SeedSequence,
    action_seed: int,
    why: str,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    state: Mapping[str, Tensor],
    counters: SharedCounters,
    row: WorkerCounters,
    lock: AbstractContextManager[object],
) -> HogwildWorker:
    """Build a worker in its own process; its model begins with the `state` of the first process's."""
    torch.set_num_threads(share.run.torch_threads)
    envs = BeatingEnvs(build_envs(share.env, env_seed, env_factory, why), row)
    model = build_model(share.model, envs, Streams.spawn(share.run.seed).model, encoder)
    model.load_state_dict(state)  # an encoder may draw its buffers from other streams; parameters are copied later
    rule, max_norm, critic = build_rule(share.optim), share.optim.max_grad_norm, pick_critic(share.optim, model)
    optimizer = HogwildOptimizer(model, rule, max_norm, counters.parameters.vectors(), row, lock, critic)
    worker = build_worker(share, [envs], model, optimizer, [action_seed], row)
    return HogwildWorker(worker, optimizer, counters)
