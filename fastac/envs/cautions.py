"""Warnings about the user's environments: parts that work differently than expected."""

from __future__ import annotations

import gymnasium as gym
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import vector as vector_wrappers

from fastac.envs.state import BatchedEnv, SingleEnv

SEEDLESS = (
    "EnvPool takes its seed when it is built, so these environments never hear the run's: give the function a "
    "parameter seed, and hand that to EnvPool"
)

# Gymnasium's wrappers that keep statistics, and the attributes that hold the statistics.
_OBS, _REWARD = "NormalizeObservation", "NormalizeReward"
_KINDS: dict[str, tuple[type, ...]] = {
    _OBS: (wrappers.NormalizeObservation, vector_wrappers.NormalizeObservation),
    _REWARD: (wrappers.NormalizeReward, vector_wrappers.NormalizeReward),
}
_STATISTICS = {_OBS: "obs_rms", _REWARD: "return_rms"}
_CAUTIONS = {
    _OBS: (
        "NormalizeObservation keeps its statistics in the environments that it wraps: evaluations begin with fresh "
        "ones, and show the policy other observations than training did; use normalize_obs=True in its place"
    ),
    _REWARD: (
        "NormalizeReward changes the rewards that are recorded: returns in training and evaluation are not the "
        "environment's; use normalize_reward=True in its place"
    ),
}


def find_cautions(env: SingleEnv | BatchedEnv) -> tuple[str, ...]:
    """Return a warning for each kind of normalising wrapper in an environment or a batch."""
    found = _find_kinds(env)
    return tuple(text for kind, text in _CAUTIONS.items() if kind in found)


def _find_kinds(env: SingleEnv | BatchedEnv) -> set[str]:
    found: set[str] = set()
    while isinstance(env, gym.Wrapper | VectorWrapper):
        found |= {kind for kind, types in _KINDS.items() if isinstance(env, types)}
        env = env.env
    if isinstance(env, SyncVectorEnv) and env.envs:
        found |= _find_kinds(env.envs[0])
    if isinstance(env, AsyncVectorEnv):
        found |= {kind for kind, name in _STATISTICS.items() if all(env.call("has_wrapper_attr", name))}
    return found


def ignores_seeds(env: BatchedEnv) -> bool:
    """Return whether a batch is an EnvPool, whose `reset` ignores its seed."""
    return any(kind.__module__.partition(".")[0] == "envpool" for kind in type(env.unwrapped).__mro__)
