"""Finds the step limit of an environment's episodes, if it declares one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import TimeLimit

from fastac.envs.state import BatchedEnv, SingleEnv

_ATTRIBUTES = ("max_episode_steps", "_max_episode_steps")
_ENDLESS = 2**31 - 1  # EnvPool's limit of an environment without one


def find_time_limit(env: SingleEnv | BatchedEnv) -> int | None:
    """Return the largest number of steps in an episode of `env`, or None if no layer declares a limit.

    Limits come from a `TimeLimit` wrapper, the registered spec, or an attribute `max_episode_steps`; for a vector
    environment made of single ones, from the first of them. The smallest limit counts.
    """
    limits = [limit for layer in _layers(env) for limit in _find_limits(layer)]
    return min(limits, default=None)


def _layers(env: SingleEnv | BatchedEnv) -> Iterator[SingleEnv | BatchedEnv]:
    """Yield an environment and all environments inside its wrappers."""
    layer = env
    while True:
        yield layer
        if not isinstance(layer, gym.Wrapper | VectorWrapper):
            return
        layer = layer.env


def _find_limits(layer: SingleEnv | BatchedEnv) -> list[int]:
    if isinstance(layer, TimeLimit):
        return [layer._max_episode_steps]
    if isinstance(layer, gym.Wrapper | VectorWrapper):
        return []  # a wrapper forwards attributes of the environment inside
    if isinstance(layer, SyncVectorEnv) and layer.envs:
        inner = find_time_limit(layer.envs[0])
        return [] if inner is None else [inner]
    if isinstance(layer, AsyncVectorEnv):
        return _ask_processes(layer)
    own, said = _valid(getattr(layer, name, None) for name in _ATTRIBUTES), _valid(_read_spec(layer.spec))
    if isinstance(layer.spec, EnvSpec):
        return own or said  # an instance may have another limit than the registered one
    return [*own, *said]


def _valid(found: Iterable[object]) -> list[int]:
    return [limit for limit in found if isinstance(limit, int) and 1 <= limit < _ENDLESS]


def _read_spec(spec: object) -> list[object]:
    """Return the registered limits: Gymnasium's, that of an ALE game (in frames), or EnvPool's."""
    if not isinstance(spec, EnvSpec):
        return [getattr(getattr(spec, "config", None), name, None) for name in _ATTRIBUTES]
    frames, skip = spec.kwargs.get("max_num_frames_per_episode"), spec.kwargs.get("frameskip")
    steps = ceil(frames / skip) if isinstance(frames, int) and isinstance(skip, int) else None
    return [spec.max_episode_steps, steps]


def _ask_processes(env: AsyncVectorEnv) -> list[int]:
    """Return the limits of the environments in an AsyncVectorEnv, as far as a wrapper exposes them."""
    name = _ATTRIBUTES[1]  # set by TimeLimit
    limits = env.get_attr(name) if all(env.call("has_wrapper_attr", name)) else ()
    return _valid(limits)
