"""Finds what is to be read from the observations of environments: their keys, and where their action masks are.

Whether a mask is in the info shows only after a reset. It is the first reset of these environments, with their seed;
its result is kept for whoever asks for a first reset, so that environments are not reset more often than without masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from fastac.config import EnvConfig
from fastac.contract import ObsArray
from fastac.envs.cautions import ignores_seeds
from fastac.envs.failure import make_failure
from fastac.envs.masks import (
    MASK_KEY,
    MASK_METHOD,
    MaskSource,
    count_choices,
    find_mask_source,
    is_in_observation,
)
from fastac.envs.mistakes import blame, check_reset
from fastac.envs.rows import Reading
from fastac.envs.spaces import ArraySpace, check_spaces
from fastac.envs.state import BatchedEnv, SingleEnv

# What a first reset returned: observation and info.
FirstReset: TypeAlias = tuple[ObsArray, dict[str, object]]


def read_single(config: EnvConfig, env: SingleEnv, seed: int) -> tuple[Reading, FirstReset | None]:
    """Return what is read from one environment, and what its first reset returned if that was needed.

    Raises:
        ValueError: unsupported spaces, or keys that it does not have.
        EnvFailure: it raised in `reset`.
    """
    check_spaces(env.observation_space, env.action_space, _to_reading(config, env.action_space, None))
    if not config.mask_actions or not count_choices(env.action_space):
        return _to_reading(config, env.action_space, None), None
    if is_in_observation(env.observation_space):
        return _to_reading(config, env.action_space, "observation"), None
    first = _reset(config.env_id, env, seed)
    return _to_reading(config, env.action_space, find_mask_source(env, first[1])), first


def _reset(env_id: str, env: SingleEnv, seed: int) -> FirstReset:
    try:
        returned = env.reset(seed=seed)
    except Exception as error:
        raise blame(error, "reset", env, env_id, "when it was tried") from error
    obs, info = check_reset(returned, env_id)
    return obs, info if isinstance(info, dict) else {}


def read_batch(config: EnvConfig, env: BatchedEnv, seed: int) -> tuple[Reading, FirstReset | None]:
    """Return what is read from a batch, and what its first reset returned if that was needed.

    Raises:
        ValueError: unsupported spaces, or keys that it does not have.
        EnvFailure: it raised in `reset`.
    """
    spaces = env.single_observation_space, env.single_action_space
    check_spaces(*spaces, _to_reading(config, env.single_action_space, None))
    source: MaskSource | None = None
    first: FirstReset | None = None
    if config.mask_actions and count_choices(env.single_action_space):
        if is_in_observation(env.single_observation_space):
            source = "observation"
        else:
            first = _reset_batch(env, seed)
            source = find_batch_source(env, first[1])
    return _to_reading(config, env.single_action_space, source), first


def find_batch_source(env: BatchedEnv, infos: Mapping[str, object]) -> MaskSource | None:
    """Return where a batch has its masks, whose last reset returned `infos`; None if it has none."""
    if is_in_observation(env.single_observation_space):
        return "observation"
    if MASK_KEY in infos:
        return "info"
    return "method" if _has_method(env) else None


def _has_method(env: BatchedEnv) -> bool:
    if callable(getattr(env, MASK_METHOD, None)):
        return True
    inner = env.unwrapped
    if isinstance(inner, SyncVectorEnv):
        return inner.envs[0].has_wrapper_attr(MASK_METHOD)
    return isinstance(inner, AsyncVectorEnv) and all(inner.call("has_wrapper_attr", MASK_METHOD))


def _reset_batch(env: BatchedEnv, seed: int) -> FirstReset:
    try:
        return env.reset(seed=None if ignores_seeds(env) else seed)
    except Exception as error:
        raise make_failure(error, f"the vector env ({type(env.unwrapped).__name__})", "in reset") from error


def _to_reading(config: EnvConfig, action_space: ArraySpace, source: MaskSource | None) -> Reading:
    size = sum(count_choices(action_space)) if source is not None else 0
    return Reading(config.drop_keys, config.critic_keys, source, size)
