"""After how many steps an environment cuts its episodes, where it says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import TimeLimit

from fastac.envs.state import BatchedEnv, SingleEnv

_ATTRIBUTES = ("max_episode_steps", "_max_episode_steps")


def find_time_limit(env: SingleEnv | BatchedEnv) -> int | None:
    """Return the most steps that an episode of `env` can have, or None where no layer of it names a limit.

    A `TimeLimit` wrapper says it, the registered spec, or an attribute `max_episode_steps`; of a vector environment
    built of single ones, the first of them. Of several limits the least counts.
    """
    limits = [limit for layer in _layers(env) for limit in _find_limits(layer)]
    return min(limits, default=None)


def _layers(env: SingleEnv | BatchedEnv) -> Iterator[SingleEnv | BatchedEnv]:
    """Yield an environment and what it is wrapped around."""
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
        return []  # its attributes are those of what it wraps
    if isinstance(layer, SyncVectorEnv) and layer.envs:
        inner = find_time_limit(layer.envs[0])
        return [] if inner is None else [inner]
    if isinstance(layer, AsyncVectorEnv):
        return _ask_processes(layer)
    own, said = _valid(getattr(layer, name, None) for name in _ATTRIBUTES), _valid(_read_spec(layer.spec))
    if isinstance(layer.spec, EnvSpec):
        return own or said  # an instance may have another limit than was registered
    return [*own, *said]


def _valid(found: Iterable[object]) -> list[int]:
    return [limit for limit in found if isinstance(limit, int) and limit >= 1]


def _read_spec(spec: object) -> list[object]:
    """Return the limit that was registered, and that of a game of ALE, which counts frames; or EnvPool's."""
    if not isinstance(spec, EnvSpec):
        return [getattr(getattr(spec, "config", None), name, None) for name in _ATTRIBUTES]
    frames, skip = spec.kwargs.get("max_num_frames_per_episode"), spec.kwargs.get("frameskip")
    steps = ceil(frames / skip) if isinstance(frames, int) and isinstance(skip, int) else None
    return [spec.max_episode_steps, steps]


def _ask_processes(env: AsyncVectorEnv) -> list[int]:
    """Return the limits that environments in processes of Gymnasium's have, as far as a wrapper shows them."""
    name = _ATTRIBUTES[1]  # which TimeLimit has
    limits = env.get_attr(name) if all(env.call("has_wrapper_attr", name)) else ()
    return _valid(limits)
