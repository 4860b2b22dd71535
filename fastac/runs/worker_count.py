"""Decides how many workers a run has by default, from measured times; results do not depend on it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from fastac.build import (
    EncoderFactory,
    EnvFactory,
    build_envs,
    build_model,
    most_workers,
    resolve_shards,
    resolve_workers,
    shard_config,
    step_alone_s,
)
from fastac.config import Config
from fastac.contract import VecEnv
from fastac.models import ActorCritic
from fastac.pickling import pickled
from fastac.runs.efficiency import BareTimes, measure

log = logging.getLogger("fastac")

# Until other processes have imported torch and built their environments: 2 to 4 s, and longer where all start at once.
_START_S = 4.0
_EXCHANGE_S = 1e-4  # of an update: what workers exchange, and how long they wait for the slowest
# A shorter run would be over before other workers have begun, whatever it does in a step; so nothing is measured.
_LEAST_STEPS = 5_000
_SEED = 0  # of the measured environments; any

Measure: TypeAlias = Callable[[Config, EnvFactory | None, EncoderFactory | None], BareTimes]


def choose_workers(
    config: Config,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    steps_done: int = 0,
    measure_row: Measure | None = None,
) -> Config:
    """Replace `shards='auto'` and `workers='auto'` by numbers; workers are as many as make the run shortest.

    A run has one worker if the user's script defines its environments or its encoder: other processes would have to
    import the script, which need not be written for that.

    Args:
        config: the run's configuration.
        env_factory: the user's environments, if the run has them.
        encoder: the user's encoder.
        steps_done: environment steps that the run has taken before.
        measure_row: returns the times of a step of one shard and of learning from it; by default they are measured.
    """
    if config.is_one_shard_per_worker:
        return resolve_workers(config, env_factory)
    if config.run.workers != "auto":
        return _tell_shards(config, resolve_shards(config, env_factory), env_factory)
    config = resolve_shards(config, env_factory)
    most = most_workers(config)
    steps = config.run.total_env_steps - steps_done
    if most < 2 or steps < _LEAST_STEPS:
        return config.replace(workers=1)
    if not _may_be_divided(env_factory, encoder):
        log.info(
            "workers 1: environments and encoders that a script defines stay in its process, unless given --workers"
        )
        return config.replace(workers=1)
    try:
        with _global_streams_kept():
            bare = (measure_row or _measure_row)(config, env_factory, encoder)
    except Exception as error:  # whatever the environment raises: the run itself will say it
        log.debug("workers 1: a step could not be measured (%s)", error)
        return config.replace(workers=1)
    seconds = {workers: _predict_s(config, steps, workers, bare) for workers in range(1, most + 1)}
    best = min(seconds, key=lambda workers: seconds[workers])
    log.info(
        "workers %d, chosen of at most %d: about %.0f s, start-up included, and %.0f s with %d (measured: %.3g ms for "
        "a step of %d envs and learning from it)",
        best,
        most,
        seconds[best],
        *((seconds[1], 1) if best > 1 else (seconds[most], most)),
        1e3 * bare.row_s * config.num_shards,
        config.env.num_envs,
    )
    return config.replace(workers=best)


def choose_workers_of_host(
    config: Config,
    shards: int,
    most: int,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    steps_done: int = 0,
) -> Config:
    """Replace `workers='auto'` by the number that makes the run shortest on a host that has some of its shards.

    Args:
        config: the run's configuration, with a number of shards.
        shards: how many this host has.
        most: the most workers that it may have.
        env_factory: the user's environments, if the run has them.
        encoder: the user's encoder.
        steps_done: environment steps that the run has taken before.
    """
    if config.run.workers != "auto" or most == 1:
        return config.replace(workers=min(most, config.num_workers))
    part = config.env.num_envs // config.num_shards * shards
    budget = -(-config.run.total_env_steps * shards // config.num_shards)
    own = config.replace(num_envs=part, shards=shards, total_env_steps=budget)
    chosen = choose_workers(own, env_factory, encoder, steps_done * shards // config.num_shards)
    return config.replace(workers=chosen.num_workers)


def _tell_shards(asked: Config, config: Config, env_factory: EnvFactory | None) -> Config:
    """Say if a given number of workers has raised that of the shards; return the configuration."""
    if (
        asked.run.shards == "auto"
        and config.num_shards > resolve_shards(asked.replace(workers=1), env_factory).num_shards
    ):
        log.info(
            "shards %d, one per worker: with another number of workers, --shards %d gives the same results",
            config.num_shards,
            config.num_shards,
        )
    return config


def _may_be_divided(env_factory: EnvFactory | None, encoder: EncoderFactory | None) -> bool:
    """Return whether other processes can have the environments and the encoder without importing the script."""
    if not isinstance(env_factory, EnvSpec | None):
        return False
    try:
        return not pickled((env_factory, encoder), "").needs_script
    except ValueError:
        return False


@contextmanager
def _global_streams_kept() -> Iterator[None]:
    """Restore the global random streams: environments that use them shall not depend on the measurement."""
    python, numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(of_torch)


def _predict_s(config: Config, steps: int, workers: int, bare: BareTimes) -> float:
    """Return how long `steps` environment steps take, from the times of one shard."""
    algo, shards = config.algo, config.num_shards
    alone_s = step_alone_s(config, bare.env_s) + bare.row_s - bare.env_s
    rows = steps / config.env.num_envs
    if config.run.budget_minutes is not None:
        rows = min(rows, 60.0 * config.run.budget_minutes / max(shards * alone_s, 1e-9))
    if workers == 1:
        return rows * shards * alone_s
    updates = rows / algo.num_steps * algo.num_epochs * algo.num_minibatches
    return _START_S + rows * -(-shards // workers) * bare.row_s + updates * _EXCHANGE_S


@dataclass(frozen=True, slots=True)
class _Parts:
    """What `measure` needs of a training that does not exist yet."""

    model: ActorCritic
    envs: VecEnv


def _measure_row(config: Config, env_factory: EnvFactory | None, encoder: EncoderFactory | None) -> BareTimes:
    """Measure on environments of one shard, which are closed again: some simulators cannot be open twice."""
    apart = config.replace(workers=config.num_shards)  # so that a worker's share is one shard
    one = shard_config(apart, env_factory)
    with closing(build_envs(one.env, np.random.SeedSequence(_SEED), env_factory)) as envs:
        parts = _Parts(build_model(one.model, envs, _SEED, encoder), envs)
        return measure(apart, parts, config.algo.num_steps, env_factory, envs=envs)
