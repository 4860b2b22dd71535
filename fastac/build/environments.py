"""Builds the environments of a run and its evaluations, and derives the random streams of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TypeAlias

import numpy as np

from fastac.config import Config, EnvConfig, Vectorization, is_atari
from fastac.contract import VecEnv
from fastac.envs import Given, comes_batched, has_compiled, has_native, make_vec
from fastac.envs.source import EnvFunction, find_source

# The class, function or spec that the run's environments are made from, if a name is not enough.
EnvFactory: TypeAlias = Given

# Most envs in an evaluation, which play the episodes in parallel. For an id's own batch, a step costs hardly more with
# many envs. For other envs, each costs its construction, and memory besides training.
_EVAL_ENVS_BATCHED = 128
_EVAL_ENVS = 8
_EVAL_GAMES = 25  # 100 games: 4 each; with more envs, too few would be left at the end to share a forward pass


@dataclass(frozen=True, slots=True)
class Streams:
    """The random streams of a run; different runs and different purposes within a run never share one."""

    model: int
    actions: int
    env: np.random.SeedSequence

    @classmethod
    def spawn(cls, seed: int) -> Streams:
        """Derive the streams from the run's seed."""
        model, actions, env = np.random.SeedSequence(seed).spawn(3)
        return cls(to_int(model), to_int(actions), env)


def evaluation_seed(seed: int, env_steps: int) -> np.random.SeedSequence:
    """Return the stream of the evaluation after `env_steps`: the same whether the run was resumed or not."""
    return np.random.SeedSequence(seed, spawn_key=(3, env_steps))


def restart_seed(seed: int, env_steps: int) -> np.random.SeedSequence:
    """Return the stream of environments that start new episodes because their state could not be saved."""
    return np.random.SeedSequence(seed, spawn_key=(4, env_steps))


def to_int(seed: np.random.SeedSequence) -> int:
    """Return a seed in torch's format."""
    return int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes 63 bits and a sign


def shard_seeds(config: Config, seed: np.random.SeedSequence) -> list[tuple[np.random.SeedSequence, int]]:
    """Return the environment stream and the action seed of each shard.

    The first shard's actions use the stream of a run with one shard, whose environments use `seed` itself. If `seed`
    is a `restart_seed`, the action streams are new too.
    """
    shards, streams = config.num_shards, Streams.spawn(config.run.seed)
    is_anew = seed.spawn_key[:1] == restart_seed(config.run.seed, 0).spawn_key[:1]
    if shards == 1:
        return [(seed, to_int(seed.spawn(1)[0]) if is_anew else streams.actions)]
    seeds = [child.spawn(2) for child in seed.spawn(shards)]
    (first, actions), *others = [(envs, to_int(acts)) for envs, acts in seeds]
    return [(first, actions if is_anew else streams.actions), *others]


def replacement_seeds(seed: np.random.SeedSequence, restarts: int) -> tuple[np.random.SeedSequence, int]:
    """Return the seeds of the `restarts`-th replacement of a lost worker; no two replacements share a stream."""
    envs, actions = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 2**31 + restarts)).spawn(2)
    return envs, to_int(actions)


def build_envs(
    config: EnvConfig, seed: np.random.SeedSequence, factory: EnvFactory | None = None, why_sync: str = "as asked"
) -> VecEnv:
    """Build the environments by name, or from the user's factory; `why_sync` is logged if vectorization is sync.

    Raises:
        ValueError: unknown id, unsupported space, or a function that returned an object of the wrong type.
    """
    return make_vec(config, seed, given=factory, why_sync=why_sync)


def _spread(episodes: int, most: int) -> int:
    """Return how many envs play `episodes` episodes in the fewest rounds, as evenly as possible.

    An env without episodes left is still stepped: with 25 envs for 30 games, 20 would idle while 5 play a second one.
    """
    return ceil(episodes / ceil(episodes / most))


def is_batched(config: EnvConfig, factory: EnvFactory | None = None) -> bool:
    """Return whether a batch step costs about the same for few environments as for many."""
    return _own_batch(config, factory) is not None


def _own_batch(config: EnvConfig, factory: EnvFactory | None) -> Vectorization | None:
    """Return the vectorization in which the environments of an evaluation are one batch of the id's own, or None."""
    if is_atari(config.env_id):
        return None
    if config.vectorization in ("auto", "compiled") and has_compiled(config, factory):
        return "compiled"
    return "native" if config.vectorization in ("auto", "native") and has_native(config, factory) else None


def is_seeded_when_built(config: EnvConfig, factory: EnvFactory | None = None) -> bool:
    """Return whether these environments take a seed only when they are built."""
    if config.vectorization == "envpool":
        return True
    source = find_source(config, factory)
    return isinstance(source, EnvFunction) and source.takes_seed


def evaluation_width(config: EnvConfig, episodes: int, factory: EnvFactory | None = None) -> int:
    """Return how many envs play `episodes` episodes. The episodes depend on it, so only the configuration decides."""
    if comes_batched(config, factory):
        return _spread(episodes, config.num_envs)
    if is_atari(config.env_id):
        return _spread(episodes, _EVAL_GAMES)
    return _spread(episodes, _EVAL_ENVS_BATCHED if is_batched(config, factory) else _EVAL_ENVS)


def build_evaluation_envs(
    config: EnvConfig,
    num_envs: int,
    seed: np.random.SeedSequence,
    factory: EnvFactory | None = None,
    workers: int = 1,
) -> VecEnv:
    """Build environments for evaluation, batched like the run's.

    Atari games are full games, whether or not the run ends episodes at a lost life, and rows are whole stacks.

    Args:
        config: the run's.
        num_envs: number of envs, for example from `evaluation_width`.
        seed: the parent of their random streams.
        factory: the user's environments, instead of those named in `config`.
        workers: number of training processes, which are idle meanwhile; slow environments may use as many
            processes.

    Raises:
        ValueError: as `build_envs`.
    """
    few = replace(config, num_envs=num_envs, envs_per_worker=None)
    if comes_batched(config, factory):
        return build_envs(few, seed, factory)
    if is_atari(config.env_id):
        return make_vec(replace(few, episodic_life=False), seed, whole_stacks=True)
    own = _own_batch(config, factory)
    if own is not None:
        return make_vec(replace(few, vectorization=own), seed, given=factory)
    return make_vec(few, seed, least_processes=workers, given=factory)
