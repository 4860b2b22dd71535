"""Chooses the numbers of minibatches and workers, and computes each worker's share of the configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from fastac.build.environments import EnvFactory, is_batched
from fastac.config import Config, ConfigValue, is_atari
from fastac.cpu import count_cores, count_physical_cores
from fastac.envs import comes_batched, picks_own_batch
from fastac.envs.pool import is_slow

log = logging.getLogger("fastac")

# `workers=auto` adds a worker only if each gets at least this many environments. A batch steps 32 environments in the
# time of 64: two workers gain 16 % at 64 environments in total and 46 % at 256, on otherwise idle cores. On busy cores,
# workers in step wait for the slowest one, and below this share that may cost more than the gain.
_LEAST_BATCHED_SHARE = 128
_LEAST_SHARE = 2
_LEAST_GAMES = 4  # Atari: an emulator step is expensive, and a forward pass of fewer rows is hardly cheaper


# Sequences per minibatch of a recurrent run. Its steps run one after the other, and the weights are read at each: 16
# sequences take 1.6 times as long one by one as all at once, and 1.1 times in fours.
_LEAST_SEQUENCES = 4


def apply_settings(defaults: Config, settings: Mapping[str, ConfigValue]) -> Config:
    """Return the defaults updated with the given settings.

    A recurrent run without a given `num_minibatches` gets fewer than the default if each would otherwise have less
    than four sequences.

    Raises:
        ValueError: see `Config.replace`.
    """
    if "num_minibatches" in settings:
        return defaults.replace(**settings)
    changed, most = defaults.replace(**{**settings, "num_minibatches": 1}), defaults.algo.num_minibatches
    if not changed.model.is_recurrent:
        return defaults.replace(**settings)
    workers = 1 if changed.run.workers == "auto" else changed.run.workers
    sequences = changed.env.num_envs // workers
    fitting = [n for n in range(1, most + 1) if sequences % n == 0 and (n == 1 or sequences // n >= _LEAST_SEQUENCES)]
    return changed.replace(num_minibatches=fitting[-1])


def worker_share(config: Config, env_factory: EnvFactory | None) -> Config:
    """Return the configuration of one worker's share; unchanged for a single worker in this process."""
    workers, is_a3c = config.run.workers, config.algo.has_async_workers
    assert isinstance(workers, int), "resolve_workers first"
    if workers == 1 and not is_a3c:
        return config
    share = config.env.num_envs // workers
    changes: dict[str, ConfigValue] = {"num_envs": share, "workers": 1}
    has_threads = is_atari(config.env.env_id) or config.env.vectorization == "envpool"
    if workers > 1 and has_threads and config.env.env_threads is None:
        changes["env_threads"] = max(1, count_cores() // workers)
    is_batched = comes_batched(config.env, env_factory) or picks_own_batch(config.env, share, env_factory)
    if config.env.vectorization == "auto" and not is_batched:
        changes["vectorization"] = "sync"  # each worker has one core: more processes would compete for it
    return config.replace(**changes)


def why_sync(config: Config) -> str:
    """Return the reason, for the log, why vectorization is sync in a `worker_share`, if it is."""
    return "as asked" if config.env.vectorization == "sync" else "in each worker"


def shorten_rollout(config: Config, is_asked: bool = False) -> Config:
    """Shorten the rollout to about a fourth of the budget if one rollout exceeds the whole budget.

    A fourth, because rows that only reset an environment do not count: one rollout of the budget's size would rarely
    reach it. With `is_asked` the user has set the length, and it is kept.
    """
    budget, steps, num_envs = config.run.total_env_steps, config.algo.num_steps, config.env.num_envs
    if config.algo.collect == "episodes" or budget >= config.batch_size:
        return config
    what = f"total_env_steps is {budget:,}, less than one rollout of {num_envs} envs x {steps} steps"
    if is_asked:
        log.info("%s: the run ends after the first that reaches it", what)
        return config
    for shorter in range(max(1, budget // (4 * num_envs)), steps):
        with suppress(ValueError):  # lengths that do not divide into minibatches
            config = config.replace(num_steps=shorter)
            log.info("%s: num_steps is %d in this run", what, shorter)
            return config
    return config


def resolve_workers(config: Config, env_factory: EnvFactory | None = None) -> Config:
    """Replace `workers='auto'` by a number: one per physical core, or fewer if more would not pay off."""
    if config.run.workers != "auto":
        return config
    most = max(1, count_physical_cores() // config.run.torch_threads) if config.run.device == "cpu" else 1
    if config.env.envs_per_worker is not None:
        return config.replace(workers=most)
    is_one_batch = comes_batched(config.env, env_factory) or is_batched(config.env, env_factory)
    if config.env.vectorization == "envpool" and is_slow(config.env):
        is_one_batch = False  # each of these environments costs time
    least = _LEAST_BATCHED_SHARE if is_one_batch else _LEAST_SHARE
    if is_atari(config.env.env_id):
        least = _LEAST_GAMES
    if config.algo.has_async_workers:
        least = 1  # async workers do not wait for each other
    for workers in range(most, 1, -1):
        if config.env.num_envs // workers >= least:
            with suppress(ValueError):  # numbers that do not divide the environments
                return config.replace(workers=workers)
    return config.replace(workers=1)
