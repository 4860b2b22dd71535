"""Decides how many workers a run has by default, from measured times; results do not depend on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from fastac.build import (
    EncoderFactory,
    EnvFactory,
    build_envs,
    build_model,
    most_workers,
    resolve_shards,
    resolve_workers,
    shard_config,
)
from fastac.config import Config
from fastac.contract import EnvFailure, VecEnv
from fastac.models import ActorCritic
from fastac.pickling import pickled
from fastac.runs.efficiency import measure

log = logging.getLogger("fastac")

# Until other processes have imported torch and built their environments: 2 to 4 s, and longer where all start at once.
_START_S = 4.0
_EXCHANGE_S = 1e-4  # of an update: what workers exchange, and how long they wait for the slowest
# A shorter run would be over before other workers have begun, whatever it does in a step; so nothing is measured.
_LEAST_STEPS = 5_000
_SEED = 0  # of the measured environments; any

Measure = Callable[[Config, EnvFactory | None, EncoderFactory | None], float]


def choose_workers(
    config: Config, env_factory: EnvFactory | None, encoder: EncoderFactory | None, measure_row: Measure | None = None
) -> Config:
    """Replace `shards='auto'` and `workers='auto'` by numbers; workers are as many as make the run shortest.

    Args:
        config: the run's configuration.
        env_factory: the user's environments, if the run has them.
        encoder: the user's encoder.
        measure_row: returns the seconds of a step of one shard and of learning from it; by default they are measured.
    """
    if config.run.workers != "auto" or config.is_one_shard_per_worker:
        return resolve_workers(config, env_factory)
    config = resolve_shards(config, env_factory)
    most = most_workers(config)
    if most < 2 or config.run.total_env_steps < _LEAST_STEPS or not _can_be_sent(env_factory, encoder):
        return config.replace(workers=1)
    try:
        row_s = (measure_row or _measure_row)(config, env_factory, encoder)
    except (EnvFailure, ValueError):  # the run itself will say what it is
        return config.replace(workers=1)
    seconds = {workers: _predict_s(config, workers, row_s) for workers in range(1, most + 1)}
    best = min(seconds, key=lambda workers: seconds[workers])
    log.info(
        "workers %d: a step of %d envs takes %.3g ms with learning, so training takes about %.0f s%s",
        best,
        config.env.num_envs,
        1e3 * row_s * config.num_shards,
        seconds[best],
        f", and {seconds[1]:.0f} s with one" if best > 1 else f", and {seconds[most]:.0f} s with {most}",
    )
    return config.replace(workers=best)


def _can_be_sent(env_factory: EnvFactory | None, encoder: EncoderFactory | None) -> bool:
    """Return whether other processes can have the user's functions without importing the user's script.

    A script need not be written so that it can be imported.
    """
    try:
        return not pickled((env_factory, encoder), "").needs_script
    except ValueError:
        return False


def _predict_s(config: Config, workers: int, row_s: float) -> float:
    """Return how long training takes, from the seconds of a step of one shard and of learning from it."""
    algo, shards = config.algo, config.num_shards
    rows = config.run.total_env_steps / config.env.num_envs
    if config.run.budget_minutes is not None:
        rows = min(rows, 60.0 * config.run.budget_minutes / (shards * row_s))
    one_after_the_other_s = rows * -(-shards // workers) * row_s
    if workers == 1:
        return one_after_the_other_s
    updates = rows / algo.num_steps * algo.num_epochs * algo.num_minibatches
    return _START_S + one_after_the_other_s + updates * _EXCHANGE_S


@dataclass(frozen=True, slots=True)
class _Parts:
    """What `measure` needs of a training that does not exist yet."""

    model: ActorCritic
    envs: VecEnv


def _measure_row(config: Config, env_factory: EnvFactory | None, encoder: EncoderFactory | None) -> float:
    """Measure on environments of one shard, which are closed again: some simulators cannot be open twice."""
    apart = config.replace(workers=config.num_shards)  # so that a worker's share is one shard
    one = shard_config(apart, env_factory)
    with closing(build_envs(one.env, np.random.SeedSequence(_SEED), env_factory)) as envs:
        parts = _Parts(build_model(one.model, envs, _SEED, encoder), envs)
        return measure(apart, parts, config.algo.num_steps, env_factory, envs=envs).row_s
