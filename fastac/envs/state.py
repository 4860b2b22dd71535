"""Saving and restoring an environment exactly, where it is known what there is to save.

An environment is a stack of layers (wrappers around the environment itself). Each layer is either in
the table below, or one of MuJoCo's robots, or has methods `get_state()` and `set_state(state)` of its own; one layer
that is none of these makes the whole stack impossible to save, and training then resumes with new episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import (
    AcrobotEnv,
    CartPoleEnv,
    Continuous_MountainCarEnv,
    MountainCarEnv,
    PendulumEnv,
)
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.toy_text import FrozenLakeEnv, TaxiEnv
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import FlattenObservation, NormalizeObservation, NormalizeReward, OrderEnforcing, TimeLimit
from gymnasium.wrappers import vector as vector_wrappers
from gymnasium.wrappers.utils import RunningMeanStd
from numpy.typing import NDArray

from fastac.contract import ActionArray, ObsArray, StateLeaf, StateTree
from fastac.envs.flatten import FlattenedBatch
from fastac.envs.robots import capture_robot, is_robot, restore_robot

SingleEnv: TypeAlias = gym.Env[ObsArray, ActionArray]
BatchedEnv: TypeAlias = VectorEnv[ObsArray, ActionArray, NDArray[np.generic]]

# The attributes that change as an episode goes on. Keyed by exact type: a subclass may have more.
_FIELDS: dict[type, tuple[str, ...]] = {
    TimeLimit: ("_elapsed_steps",),
    OrderEnforcing: ("_has_reset",),
    FlattenObservation: (),
    FlattenedBatch: (),
    NormalizeObservation: ("obs_rms",),
    NormalizeReward: ("return_rms", "discounted_reward"),
    vector_wrappers.NormalizeObservation: ("obs_rms",),
    vector_wrappers.NormalizeReward: ("return_rms", "accumulated_reward", "_prev_dones"),
    CartPoleEnv: ("state", "steps_beyond_terminated"),
    AcrobotEnv: ("state",),
    MountainCarEnv: ("state",),
    Continuous_MountainCarEnv: ("state",),
    PendulumEnv: ("state", "last_u"),
    FrozenLakeEnv: ("s", "lastaction"),
    TaxiEnv: ("s", "lastaction", "fickle_step", "taxi_orientation"),
    CartPoleVectorEnv: ("state", "steps", "prev_done", "low", "high", "steps_beyond_terminated"),
}


@runtime_checkable
class Restorable(Protocol):
    """An environment that saves itself; its `np_random` is saved for it."""

    def get_state(self) -> StateTree:
        """Return everything that changes as an episode goes on."""

    def set_state(self, state: StateTree) -> None:
        """Take it back."""


def capture(env: SingleEnv | BatchedEnv) -> StateTree | None:
    """Return the state of every layer of `env`, or None if some layer's cannot be told."""
    tree: dict[str, StateTree] = {}
    layers = _layers(env)
    is_new = any(isinstance(layer, OrderEnforcing) and not layer.has_reset for layer in layers)
    for depth, layer in enumerate(layers):
        part = _capture_layer(layer, is_new)
        if part is None:
            return None
        tree[str(depth)] = part
    return tree


def restore(env: SingleEnv | BatchedEnv, state: StateTree) -> None:
    """Put a `capture` back into an environment built in the same way.

    Raises:
        ValueError: it is of another kind of environment.
    """
    for depth, layer in enumerate(_layers(env)):
        part = subtree(state, str(depth))
        kind = part.get("kind", _kind(layer))  # versions that saved none saved nothing else that would tell
        if kind != _kind(layer):
            raise ValueError(
                f"the saved environment state is of a {kind}, expected a {_kind(layer)}: go on with the environments "
                "that the run began with."
            )
        for name in _FIELDS.get(type(layer), ()):
            if name not in part:
                raise ValueError(f"the saved environment state has no {name!r}: it is of another kind of environment.")
            setattr(layer, name, _unpack(part[name]))
        if is_robot(layer):
            restore_robot(layer, subtree(part, "robot"))
        if "own" in part and isinstance(layer, Restorable):
            layer.set_state(subtree(part, "own"))
        if "rng" in part:
            layer.np_random = _restore_rng(subtree(part, "rng"))


def subtree(state: StateTree, name: str) -> StateTree:
    """Return a branch of a state, refusing a state of another shape in one sentence."""
    branch = state.get(name)
    if not isinstance(branch, Mapping):
        raise ValueError(f"the saved environment state has no part {name!r}: it is of another kind of environment.")
    return branch


def _layers(env: SingleEnv | BatchedEnv) -> list[SingleEnv | BatchedEnv]:
    layers = [env]
    while isinstance(layers[-1], (gym.Wrapper, VectorWrapper)):
        layers.append(layers[-1].env)
    return layers


def _kind(layer: SingleEnv | BatchedEnv) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _capture_layer(layer: SingleEnv | BatchedEnv, is_new: bool) -> StateTree | None:
    part: dict[str, StateTree | StateLeaf] = {"kind": _kind(layer)}
    fields = _FIELDS.get(type(layer))
    if fields is not None:
        if not is_new and not all(hasattr(layer, name) for name in fields):
            return None  # another Gymnasium, whose attributes have other names
        # Before its first reset an environment may not have them yet.
        part.update({name: _pack(getattr(layer, name, None)) for name in fields})
    elif is_robot(layer):
        part["robot"] = capture_robot(layer)
    elif isinstance(layer, Restorable):
        own = layer.get_state()
        if not isinstance(own, Mapping):  # a method of the same name that means something else
            return None
        part["own"] = own
    else:
        return None
    rng = getattr(layer, "_np_random", None)  # the property would make one, and wrappers have none
    if isinstance(rng, np.random.Generator):
        part["rng"] = rng.bit_generator.state
    return part


def _restore_rng(state: StateTree) -> np.random.Generator:
    bit_generator: np.random.BitGenerator = getattr(np.random, str(state["bit_generator"]))()
    bit_generator.state = state
    return np.random.Generator(bit_generator)


def _pack(value: object) -> StateTree | StateLeaf:
    """Tell arrays, NumPy scalars (as arrays without dimensions) and tuples of numbers apart."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.array(value)
    if isinstance(value, tuple):
        return {"tuple": np.array(value)}
    if isinstance(value, RunningMeanStd):
        return {"mean": np.array(value.mean), "var": np.array(value.var), "count": float(value.count)}
    assert value is None or isinstance(value, (int, float, str)), value
    return value


def _to_moments(state: StateTree) -> RunningMeanStd:
    moments = RunningMeanStd()  # type: ignore[no-untyped-call]
    moments.mean, moments.var = (np.array(state[name])[()] for name in ("mean", "var"))
    moments.count = state["count"]
    return moments


def _unpack(value: StateTree | StateLeaf) -> object:
    if isinstance(value, Mapping):
        return tuple(np.array(value["tuple"])) if "tuple" in value else _to_moments(value)
    if value is None or isinstance(value, (int, float, str)):
        return value
    array = np.array(value)
    return array if array.ndim else array[()]
