"""Saves and restores environments exactly, if all their state is known.

An environment is a stack of layers: wrappers around the environment itself. Each layer must be in the table below, or
be one of MuJoCo's robots, or have its own methods `get_state()` and `set_state(state)`. A single other layer makes the
whole stack impossible to save; training then resumes with new episodes.
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
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import FlattenObservation, NormalizeObservation, NormalizeReward, OrderEnforcing, TimeLimit
from gymnasium.wrappers import vector as vector_wrappers
from gymnasium.wrappers.utils import RunningMeanStd
from numpy.typing import NDArray

from fastac.contract import ActionArray, ObsArray, StateLeaf, StateTree
from fastac.envs.flatten import FlattenedBatch, RowObservation
from fastac.envs.robots import capture_robot, is_robot, restore_robot

SingleEnv: TypeAlias = gym.Env[ObsArray, ActionArray]
BatchedEnv: TypeAlias = VectorEnv[ObsArray, ActionArray, NDArray[np.generic]]

# The attributes that change during an episode, with their shapes (() is a number, -1 the number of environments) and
# the allowed kinds of dtype. Keyed by exact type, since a subclass may have more attributes.
_Shape: TypeAlias = tuple[int, ...]
_NUMBER: tuple[_Shape, str] = ((), "biuf")
_FIELDS: dict[type, dict[str, tuple[_Shape, str]]] = {
    TimeLimit: {"_elapsed_steps": ((), "iu")},
    OrderEnforcing: {"_has_reset": ((), "b")},
    FlattenObservation: {},
    FlattenedBatch: {},
    RowObservation: {},
    NormalizeObservation: {},
    NormalizeReward: {"discounted_reward": ((1,), "f")},
    vector_wrappers.NormalizeObservation: {},
    vector_wrappers.NormalizeReward: {"accumulated_reward": ((-1,), "f"), "_prev_dones": ((-1,), "f")},
    CartPoleEnv: {"state": ((4,), "f"), "steps_beyond_terminated": _NUMBER},
    AcrobotEnv: {"state": ((4,), "f")},
    MountainCarEnv: {"state": ((2,), "f")},
    Continuous_MountainCarEnv: {"state": ((2,), "f")},
    PendulumEnv: {"state": ((2,), "f"), "last_u": _NUMBER},
    FrozenLakeEnv: {"s": ((), "iu"), "lastaction": _NUMBER},
    TaxiEnv: {"s": ((), "iu"), "lastaction": _NUMBER, "fickle_step": _NUMBER, "taxi_orientation": _NUMBER},
    CartPoleVectorEnv: {
        "state": ((4, -1), "f"),
        "steps": ((-1,), "iu"),
        "prev_done": ((-1,), "b"),
        "low": ((), "f"),
        "high": ((), "f"),
        "steps_beyond_terminated": ((-1,), "iuf"),
    },
}

# Running statistics, by the attribute that holds them.
_MOMENTS: dict[type, str] = {
    NormalizeObservation: "obs_rms",
    NormalizeReward: "return_rms",
    vector_wrappers.NormalizeObservation: "obs_rms",
    vector_wrappers.NormalizeReward: "return_rms",
}

_GENERATORS: dict[object, type[np.random.BitGenerator]] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


@runtime_checkable
class Restorable(Protocol):
    """An environment that saves itself; its `np_random` is saved separately."""

    def get_state(self) -> StateTree:
        """Return everything that changes during an episode."""

    def set_state(self, state: StateTree) -> None:
        """Restore the state."""


def capture(env: SingleEnv | BatchedEnv) -> StateTree | None:
    """Return the state of every layer of `env`, or None if the state of some layer is unknown."""
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
    """Restore a `capture` into an environment built in the same way.

    Raises:
        ValueError: the state is of another kind of environment.
    """
    for depth, layer in enumerate(_layers(env)):
        part = subtree(state, str(depth))
        kind = part.get("kind", _kind(layer))  # older versions saved no kind; nothing else identifies it
        if kind != _kind(layer):
            raise ValueError(
                f"the saved environment state is of a {kind}, expected a {_kind(layer)}: go on with the environments "
                "that the run began with."
            )
        for name, (shape, kinds) in _FIELDS.get(type(layer), {}).items():
            if name not in part:
                raise ValueError(f"the saved environment state has no {name!r}: it is of another kind of environment.")
            value = _unpack(part[name])
            _check_field(layer, name, value, shape, kinds)
            setattr(layer, name, value)
        if type(layer) in _MOMENTS:
            _restore_moments(getattr(layer, _MOMENTS[type(layer)]), subtree(part, "moments"))
        if is_robot(layer):
            restore_robot(layer, subtree(part, "robot"))
        if "own" in part and isinstance(layer, Restorable):
            layer.set_state(subtree(part, "own"))
        if "rng" in part:
            layer.np_random = _restore_rng(subtree(part, "rng"))


def subtree(state: StateTree, name: str) -> StateTree:
    """Return a branch of a state; raise ValueError if it is missing."""
    branch = state.get(name)
    if not isinstance(branch, Mapping):
        raise ValueError(f"the saved environment state has no part {name!r}: it is of another kind of environment.")
    return branch


def read_seeded(state: StateTree) -> bool:
    """Return whether the environments had received their seeds when their state was saved."""
    seeded = state.get("seeded")
    if not isinstance(seeded, bool):
        raise ValueError(f"'seeded' in the saved environment state is {seeded!r:.60}, expected True or False.")
    return seeded


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
            return None  # another Gymnasium version with other attribute names
        # Before the first reset the attributes may not exist yet.
        part.update({name: _pack(getattr(layer, name, None)) for name in fields})
        if type(layer) in _MOMENTS:
            part["moments"] = _capture_moments(getattr(layer, _MOMENTS[type(layer)]))
    elif is_robot(layer):
        part["robot"] = capture_robot(layer)
    elif isinstance(layer, Restorable):
        own = layer.get_state()
        if not isinstance(own, Mapping):  # a method of the same name with another meaning
            return None
        part["own"] = own
    else:
        return None
    rng = getattr(layer, "_np_random", None)  # reading the property would create one, and wrappers have none
    if isinstance(rng, np.random.Generator):
        part["rng"] = rng.bit_generator.state
    return part


def _capture_moments(moments: RunningMeanStd) -> StateTree:
    return {"mean": np.array(moments.mean), "var": np.array(moments.var), "count": float(moments.count)}


def _restore_moments(moments: RunningMeanStd, state: StateTree) -> None:
    """Restore running statistics.

    Raises:
        ValueError: missing or invalid statistics, or another shape.
    """
    mean, var, count = np.array(state.get("mean")), np.array(state.get("var")), state.get("count")
    is_possible = mean.shape == var.shape == np.shape(moments.mean) and mean.dtype.kind == var.dtype.kind == "f"
    if (
        not is_possible
        or not isinstance(count, float)
        or not np.isfinite([mean, var]).all()
        or not 0.0 < count < np.inf
    ):
        raise ValueError("the statistics in the saved environment state are not those of such observations or rewards.")
    moments.mean, moments.var, moments.count = mean[()], var[()], count


def _restore_rng(state: StateTree) -> np.random.Generator:
    """Return a generator with a saved state; only the generators in the table can be created.

    Raises:
        ValueError: unknown generator, or an invalid state.
    """
    name = state.get("bit_generator")
    if name not in _GENERATORS:
        known = ", ".join(kind.__name__ for kind in _GENERATORS.values())
        raise ValueError(f"the saved random generator is {name!r:.60}, expected one of {known}.")
    bit_generator = _GENERATORS[name]()
    bit_generator.state = state
    # NumPy does not check the position of the next number, and would read outside its memory.
    at = state.get("buffer_pos", 0) if name == "Philox" else subtree(state, "state").get("pos", 0)
    size = 4 if name == "Philox" else 624
    if not isinstance(at, int) or not 0 <= at <= size:
        raise ValueError(f"the saved random generator is at {at!r:.60}, expected a place from 0 to {size}.")
    return np.random.Generator(bit_generator)


def _check_field(layer: SingleEnv | BatchedEnv, name: str, value: object, shape: _Shape, kinds: str) -> None:
    """Reject an impossible value: it would fail during the run, or worse."""
    if value is None:
        return  # before a reset, or before the first action
    array, places = np.asarray(value), layer.observation_space
    sized = tuple(getattr(layer, "num_envs", 1) if size == -1 else size for size in shape)
    is_possible = array.shape == sized and array.dtype.kind in kinds and bool(np.isfinite(array).all())
    if name == "s":
        is_possible = is_possible and isinstance(places, Discrete) and bool(places.contains(array))
    if not is_possible:
        kind = type(layer).__name__
        raise ValueError(f"{name!r} in the saved environment state is {value!r:.80}, in which no {kind} can be.")


def _pack(value: object) -> StateTree | StateLeaf:
    """Pack a value so that arrays, NumPy scalars (arrays without dimensions) and tuples of numbers stay distinct."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.array(value)
    if isinstance(value, tuple):
        return {"tuple": np.array(value)}
    assert value is None or isinstance(value, (int, float, str)), value
    return value


def _unpack(value: StateTree | StateLeaf) -> object:
    if isinstance(value, Mapping):
        return tuple(np.array(value["tuple"]))
    if value is None or isinstance(value, (int, float, str)):
        return value
    array = np.array(value)
    return array if array.ndim else array[()]
