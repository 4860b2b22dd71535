"""Environments of a run and of its evaluations, and the random streams of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TypeAlias

import numpy as np

from fastac.config import Config, EnvConfig, is_atari
from fastac.contract import VecEnv
from fastac.envs import Given, comes_batched, has_native, make_vec
from fastac.envs.source import EnvFunction, find_source

# The class, function or spec that the run's environments are made from, where a name is not enough.
EnvFactory: TypeAlias = Given

# The most envs of an evaluation, which play their shares of the episodes side by side. Of the ids' own batches a step
# costs hardly more for many; else an env more costs its construction, and memory beside training.
_EVAL_ENVS_BATCHED = 128
_EVAL_ENVS = 8
_EVAL_GAMES = 25  # of 100 games 4 each: with more, the last ones end with few left to share a forward with


@dataclass(frozen=True, slots=True)
class Streams:
    """The random streams of a run; no two runs, and no two purposes in one, share any."""

    model: int
    actions: int
    env: np.random.SeedSequence

    @classmethod
    def spawn(cls, seed: int) -> Streams:
        """Derive them from the run's seed."""
        model, actions, env = np.random.SeedSequence(seed).spawn(3)
        return cls(to_int(model), to_int(actions), env)


def evaluation_seed(seed: int, env_steps: int) -> np.random.SeedSequence:
    """Return the stream of the evaluation after `env_steps`: the same whether the run was resumed or not."""
    return np.random.SeedSequence(seed, spawn_key=(3, env_steps))


def restart_seed(seed: int, env_steps: int) -> np.random.SeedSequence:
    """Return the stream of environments that begin anew because their state could not be saved."""
    return np.random.SeedSequence(seed, spawn_key=(4, env_steps))


def to_int(seed: np.random.SeedSequence) -> int:
    """Return a seed as torch takes it."""
    return int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes 63 bits and a sign


def worker_seeds(config: Config, seed: np.random.SeedSequence) -> list[tuple[np.random.SeedSequence, int]]:
    """Return the stream of environments and the seed of actions of each worker.

    The first one's actions are those of a run with one worker, whose environments have `seed` itself; but where
    `seed` is of environments that begin anew, actions are new too.
    """
    workers, streams = config.run.workers, Streams.spawn(config.run.seed)
    assert isinstance(workers, int), "resolve_workers first"
    is_anew = seed.spawn_key[:1] == restart_seed(config.run.seed, 0).spawn_key[:1]
    if workers == 1:
        return [(seed, to_int(seed.spawn(1)[0]) if is_anew else streams.actions)]
    seeds = [child.spawn(2) for child in seed.spawn(workers)]
    (first, actions), *others = [(envs, to_int(acts)) for envs, acts in seeds]
    return [(first, actions if is_anew else streams.actions), *others]


def replacement_seeds(seed: np.random.SeedSequence, restarts: int) -> tuple[np.random.SeedSequence, int]:
    """Return the same for a worker that takes a lost one's place, the `restarts`-th that does; no two share any."""
    envs, actions = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 2**31 + restarts)).spawn(2)
    return envs, to_int(actions)


def build_envs(
    config: EnvConfig, seed: np.random.SeedSequence, factory: EnvFactory | None = None, why_sync: str = "as asked"
) -> VecEnv:
    """Build the environments by name, or of what the user gave; `why_sync` tells why vectorization is, if it is.

    Raises:
        ValueError: unknown id, unsupported space, or a function that returned something else than it should.
    """
    return make_vec(config, seed, given=factory, why_sync=why_sync)


def _spread(episodes: int, most: int) -> int:
    """Return how many envs play so many episodes in the fewest rounds, and as equally as can be.

    An env whose share is played is still stepped: of 25 envs for 30 games, 20 would wait while 5 play a second one.
    """
    return ceil(episodes / ceil(episodes / most))


def is_batched(config: EnvConfig, factory: EnvFactory | None = None) -> bool:
    """Return whether a step of a batch of these costs much the same for few of them and for many."""
    own = not is_atari(config.env_id) and config.vectorization in ("auto", "native")
    return own and has_native(config, factory)


def is_seeded_when_built(config: EnvConfig, factory: EnvFactory | None = None) -> bool:
    """Return whether these take their seed when they are built, and none later."""
    source = find_source(config, factory)
    return isinstance(source, EnvFunction) and source.takes_seed


def evaluation_width(config: EnvConfig, episodes: int, factory: EnvFactory | None = None) -> int:
    """Return how many envs play so many episodes: by the configuration alone, as the episodes depend on it."""
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
    """Build environments for evaluations, as the run's are batched.

    Atari games are full ones, whether or not a life ends what is learned from, and rows are whole stacks.

    Args:
        config: the run's.
        num_envs: how many, such as `evaluation_width` says.
        seed: the parent of their random streams.
        factory: the user's own, in place of those that `config` names.
        workers: the processes that train meanwhile wait: environments in processes may have as many, as slow
            ones ask for.

    Raises:
        ValueError: as `build_envs`.
    """
    few = replace(config, num_envs=num_envs, envs_per_worker=None)
    if comes_batched(config, factory):
        return build_envs(few, seed, factory)
    if is_atari(config.env_id):
        return make_vec(replace(few, episodic_life=False), seed, whole_stacks=True)
    if is_batched(config, factory):
        return make_vec(replace(few, vectorization="native"), seed, given=factory)
    return make_vec(few, seed, least_processes=workers, given=factory)
