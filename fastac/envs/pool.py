"""EnvPool's environments, stepped by C++ threads: finds them by id, and compares them with Gymnasium's."""

from __future__ import annotations

import importlib
import json
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from time import perf_counter
from types import ModuleType

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorWrapper

from fastac.config import EnvArguments, EnvConfig, is_atari
from fastac.contract import EnvFailure
from fastac.cpu import count_cores
from fastac.envs.failure import describe
from fastac.envs.limits import find_time_limit
from fastac.envs.robots import quiet_mujoco_warnings
from fastac.envs.spaces import ArraySpace
from fastac.envs.state import BatchedEnv
from fastac.install import INSTALL

# Arguments of EnvPool that are not the user's: fastac sets them, or they change what a step is.
_RESERVED = frozenset({"seed", "env_seed", "num_threads", "batch_size", "max_num_players", "gym_reset_return_info"})

# More threads pay off if one thread takes longer than this to step one environment, or eight. A step costs 75 us with
# one thread and 178 us with two for 16 CartPoles, and 540 us and 370 us for 16 LunarLanders.
_THREADS_WORTH_US = 150.0
_TRIAL_SIZES = (1, 8)  # one tells enough of an Atari game, which takes 0.3 s to build
_TRIAL_STEPS = 20

_ALIKE = 0.85  # of a name without its version, to be suggested: Walker and Walker2d, but not Thing and NChain

# Differences from Gymnasium's environments, found by stepping both from the same states (EnvPool 1.2.5).
_DIFFERENCES = {"Pendulum-v1": "EnvPool's Pendulum-v1 moves by the speed before it is clipped to 8, Gymnasium's after"}


@dataclass(frozen=True, slots=True)
class Pool:
    """A batch of EnvPool.

    Attributes:
        env: the batch. Its spaces are those of Gymnasium's environment, if there is one: EnvPool's have other bounds.
        threads: number of threads that step it. Results do not depend on it.
        cautions: warnings about differences from Gymnasium's environment.
    """

    env: BatchedEnv
    threads: int
    cautions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Counterpart:
    """Gymnasium's environment of the same id and arguments; `limit` is its time limit in steps."""

    observation_space: ArraySpace
    action_space: ArraySpace
    limit: int | None


def has_pool(env_id: str) -> bool:
    """Return whether EnvPool is installed and has this id; its Atari games have other ids than ALE's."""
    if is_atari(env_id) or find_spec("envpool") is None:
        return False
    return _name(env_id) in _import().list_all_envs()


def is_slow(config: EnvConfig) -> bool:
    """Return whether EnvPool's environments are so slow that a thread or a worker per core pays off for a few of them.

    Raises:
        ValueError, EnvFailure: see `make_pool`.
    """
    _check(config)
    return _is_slow(_name(config.env_id), _to_key(config.env_kwargs))


def make_pool(config: EnvConfig, num_envs: int, seed: int) -> Pool:
    """Build EnvPool's batch of `config.env_id`; environment i gets the seed `seed` + i.

    Raises:
        ValueError: EnvPool is not installed, or has no such id or arguments, or has other spaces than Gymnasium.
        EnvFailure: it could not be built.
    """
    _check(config)
    name, key = _name(config.env_id), _to_key(config.env_kwargs)
    threads = min(config.env_threads or count_cores(), num_envs)
    if config.env_threads is None and threads > 1 and not _is_slow(name, key):
        threads = 1
    env = _build(name, config.env_kwargs, num_envs, threads, seed)
    counterpart = _find_counterpart(name, key)
    if counterpart is None:
        return Pool(env, threads, ())
    try:
        _check_spaces(name, env, counterpart)
    except ValueError:
        env.close()
        raise
    wrapped = VectorWrapper(env)
    wrapped.single_observation_space = counterpart.observation_space
    wrapped.single_action_space = counterpart.action_space
    return Pool(wrapped, threads, _find_cautions(config.env_id, find_time_limit(env), counterpart.limit))


def _import() -> ModuleType:
    try:
        return importlib.import_module("envpool")  # takes a second
    except ImportError as error:
        raise ValueError(
            f"vectorization is 'envpool', which needs a package ({describe(error)}): {INSTALL['envpool']}."
        ) from error


def _name(env_id: str) -> str:
    """Return an id without the module that registers it with Gymnasium."""
    return env_id.rpartition(":")[2]


def _stem(name: str) -> str:
    """Return an id without its namespace and version."""
    return name.rpartition("/")[2].rpartition("-v")[0]


def _to_key(kwargs: EnvArguments) -> str:
    return json.dumps(dict(kwargs), sort_keys=True)


def _check(config: EnvConfig) -> None:
    """Raise ValueError unless EnvPool has the id, and its environment accepts the arguments."""
    env_id, name, ids = config.env_id, _name(config.env_id), _import().list_all_envs()
    if name not in ids:
        stems = get_close_matches(_stem(name), {_stem(known) for known in ids}, n=1, cutoff=_ALIKE)
        near = [known for known in ids if _stem(known) in stems]
        hint = f"use {' or '.join(near)}, which may differ, or" if near else "use"
        raise ValueError(f"vectorization is 'envpool' but EnvPool has no {env_id}: {hint} vectorization auto.")
    kwargs = dict(config.env_kwargs)
    for argument in sorted(_RESERVED & kwargs.keys()):
        hint = "give --env-threads" if argument == "num_threads" else "leave it out"
        raise ValueError(f"env_kwargs has {argument!r}, which fastac gives to EnvPool: {hint}.")
    limit = kwargs.get("max_episode_steps", 1)
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"env_kwargs has max_episode_steps {limit!r}, expected at least 1 with EnvPool.")
    try:
        _import().make_spec(name, **kwargs)
    except Exception as error:
        raise ValueError(f"env_kwargs is {kwargs}, which EnvPool's {name} refuses ({describe(error)}).") from error


def _build(name: str, kwargs: EnvArguments, num_envs: int, threads: int, seed: int) -> BatchedEnv:
    try:
        env: BatchedEnv = _import().make_gymnasium(name, num_envs=num_envs, num_threads=threads, seed=seed, **kwargs)
    except Exception as error:
        raise EnvFailure(f"EnvPool's {name} could not be built ({describe(error)}).") from error
    read_spaces(env)
    return env


def read_spaces(env: BatchedEnv) -> None:
    """Make a batch of EnvPool build its spaces, without Gymnasium's warnings of the precision of their bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _ = env.single_observation_space, env.single_action_space


@cache
def _is_slow(name: str, key: str) -> bool:
    return any(_time_step_us(name, json.loads(key), size) > _THREADS_WORTH_US for size in _TRIAL_SIZES)


def _time_step_us(name: str, kwargs: EnvArguments, num_envs: int) -> float:
    """Return the microseconds of a step of `num_envs` environments by one thread; the least, on a busy machine too."""
    env = _build(name, kwargs, num_envs, 1, 0)
    env.single_action_space.seed(0)
    action = np.stack([env.single_action_space.sample() for _ in range(num_envs)])
    env.reset()
    costs_s = []
    for _ in range(_TRIAL_STEPS):
        began_s = perf_counter()
        env.step(action)
        costs_s.append(perf_counter() - began_s)
    env.close()
    return min(costs_s) * 1e6


@cache
def _find_counterpart(name: str, key: str) -> _Counterpart | None:
    """Return what Gymnasium has under this id, or None if it has nothing, or cannot build it here."""
    spec = gym.registry.get(name)
    if spec is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old version
            quiet_mujoco_warnings(spec)
            env = gym.make(spec, disable_env_checker=True, **json.loads(key))
    except Exception:  # for example, its simulator is not installed, or it has no such argument
        return None
    counterpart = _Counterpart(env.observation_space, env.action_space, find_time_limit(env))
    env.close()
    return counterpart


def _check_spaces(name: str, env: BatchedEnv, counterpart: _Counterpart) -> None:
    """Raise ValueError if the spaces differ so much that a policy for one does not fit the other."""
    for what, own, other in (
        ("observation", env.single_observation_space, counterpart.observation_space),
        ("action", env.single_action_space, counterpart.action_space),
    ):
        if not _is_alike(own, other, has_bounds=what == "action"):
            raise ValueError(
                f"vectorization is 'envpool' but EnvPool's {name} has the {what} space {own}, and Gymnasium's has "
                f"{other}: use auto or sync, or give a function that builds EnvPool's."
            )


def _is_alike(own: ArraySpace, other: ArraySpace, has_bounds: bool) -> bool:
    if not (isinstance(own, Box) and isinstance(other, Box)):
        return own == other
    if own.shape != other.shape or own.dtype.kind != other.dtype.kind:
        return False
    return not has_bounds or (np.allclose(own.low, other.low) and np.allclose(own.high, other.high))


def _find_cautions(env_id: str, limit: int | None, other_limit: int | None) -> tuple[str, ...]:
    cautions = []
    module, _, name = env_id.rpartition(":")
    if module:
        cautions.append(f"the environments are EnvPool's own {name}, not that of {module}")
    if limit != other_limit:
        own, other = ("none" if steps is None else f"{steps} steps" for steps in (limit, other_limit))
        cautions.append(f"the time limit of EnvPool's {name} is {own}, that of Gymnasium's is {other}")
    if name in _DIFFERENCES:
        cautions.append(_DIFFERENCES[name])
    return tuple(cautions)
