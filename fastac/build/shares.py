"""Chooses the numbers of minibatches, shards and workers, and derives the configuration of one shard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from fastac.build.environments import EnvFactory, is_batched
from fastac.config import Config, ConfigValue, is_atari
from fastac.cpu import count_cores, count_physical_cores
from fastac.envs import comes_batched, picks_own_batch
from fastac.envs.trial import PROCESS_WORTH_US

log = logging.getLogger("fastac")

# The fewest environments of a shard, unless a number is given; with more than two shards, twice as many. What does not
# shrink with a shard's rows costs a worker that has several: at 64 of CartPole's environments two shards cost 6 % and
# four 24 %; at 1024, eight cost 2 %. LunarLander's PPO with 16: two nothing, four 14 %. See benchmarks/LOG.md.
_LEAST_BATCHED = 128
_LEAST = 4
_MOST_SHARDS = 8

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
    sequences = changed.env.num_envs // changed.num_shards
    fitting = [n for n in range(1, most + 1) if sequences % n == 0 and (n == 1 or sequences // n >= _LEAST_SEQUENCES)]
    return changed.replace(num_minibatches=fitting[-1])


def shard_config(config: Config, env_factory: EnvFactory | None) -> Config:
    """Return the configuration of one shard; unchanged for a single shard in this process."""
    shards, is_a3c = config.num_shards, config.algo.has_async_workers
    workers = config.num_workers
    if shards == 1 and not is_a3c:
        return config
    share = config.env.num_envs // shards
    changes: dict[str, ConfigValue] = {"num_envs": share, "workers": 1, "shards": 1}
    has_threads = is_atari(config.env.env_id) or config.env.vectorization == "envpool"
    if workers > 1 and has_threads and config.env.env_threads is None:
        changes["env_threads"] = max(1, count_cores() // workers)
    is_batched = comes_batched(config.env, env_factory) or picks_own_batch(config.env, share, env_factory)
    if config.env.vectorization == "auto" and not is_batched and (workers > 1 or is_a3c):
        changes["vectorization"] = "sync"  # each worker has one core: more processes would compete for it
    return config.replace(**changes)


def why_sync(config: Config) -> str:
    """Return the reason, for the log, why vectorization is sync in a `shard_config`, if it is."""
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
    """Replace `shards='auto'` and `workers='auto'` by numbers, without measuring anything.

    Shards depend on the environments alone and never on the machine: as many as may be worth a process each, but at
    most eight, and at least as many as the workers that are given. Workers are one per physical core, at most one per
    shard. With a3c and with `envs_per_worker`, each worker is a shard.
    """
    if config.is_one_shard_per_worker:
        return _resolve_pairs(config, _count_places(config))
    config = resolve_shards(config, env_factory)
    return config if config.run.workers != "auto" else config.replace(workers=most_workers(config))


def most_workers(config: Config) -> int:
    """Return how many workers have a core and a shard each."""
    return min(_count_places(config), config.num_shards)


def _count_places(config: Config) -> int:
    """Return how many workers have as many physical cores as each has threads; on an accelerator, one."""
    return max(1, count_physical_cores() // config.run.torch_threads) if config.run.device == "cpu" else 1


def _resolve_pairs(config: Config, most: int) -> Config:
    """Choose workers that have a shard each, at most `most` unless a number is given."""
    if config.run.workers != "auto":
        return config.replace(shards=config.run.workers)
    if config.run.shards != "auto":
        return config.replace(workers=config.run.shards)
    if config.env.envs_per_worker is not None:
        return config.replace(workers=most, shards=most)
    for workers in range(min(most, config.env.num_envs), 1, -1):
        with suppress(ValueError):  # numbers that do not divide the environments
            return config.replace(workers=workers, shards=workers)
    return config.replace(workers=1, shards=1)


def resolve_shards(config: Config, env_factory: EnvFactory | None = None) -> Config:
    """Replace `shards='auto'` by a number, see `resolve_workers`."""
    if config.run.shards != "auto":
        return config
    least, few = config.num_shards, config.env.num_envs // _least_envs(config, env_factory)
    most = min(_MOST_SHARDS, max(few // 2, min(few, 2)))
    if config.run.device != "cpu" or config.env.vectorization == "process":
        most = 1  # one device does it all; these processes step all environments at once
    for shards in range(most, least, -1):
        with suppress(ValueError):  # numbers that do not divide the environments, or their minibatches
            changed = config.replace(shards=shards)
            if not _splits_sequences(changed):
                return changed
    return config.replace(shards=least)


def _splits_sequences(config: Config) -> bool:
    """Return whether a recurrent run's minibatch has too few sequences of a shard."""
    sequences = config.env.num_envs // config.num_shards // config.algo.num_minibatches
    return config.model.is_recurrent and sequences < _LEAST_SEQUENCES


def step_alone_s(config: Config, step_s: float, env_factory: EnvFactory | None = None) -> float:
    """Return the seconds of a step of one shard's environments in a run with one worker.

    Args:
        config: the run's configuration, with a number of shards.
        step_s: the seconds of that step in one process. With `auto`, expensive environments get processes of their own.
        env_factory: the user's environments, if the run has them.
    """
    share, cores = config.env.num_envs // config.num_shards, count_cores()
    is_batched = comes_batched(config.env, env_factory) or picks_own_batch(config.env, share, env_factory)
    # Only what is certain: near the border the run's own trial may decide otherwise, and up to as many cores as shards
    # workers are faster, since they learn in parallel too.
    is_worth = cores > config.num_shards and 1e6 * step_s / share > 2 * PROCESS_WORTH_US
    if config.env.vectorization != "auto" or is_batched or not is_worth:
        return step_s
    return step_s / min(share, cores)


def _least_envs(config: Config, env_factory: EnvFactory | None) -> int:
    """Return how many environments are worth a shard."""
    env, is_one_batch = config.env, False
    if env.vectorization == "envpool":  # which has fast and slow ones; those with a batch of their own here are fast
        with suppress(ValueError):  # Gymnasium does not know the id
            is_one_batch = is_batched(replace(env, vectorization="auto", env_threads=None))
    else:
        is_one_batch = comes_batched(env, env_factory) or is_batched(env, env_factory)
    return _LEAST_BATCHED if is_one_batch and not is_atari(env.env_id) else _LEAST
