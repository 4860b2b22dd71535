"""Saves spaces as state trees, so that a trained policy can be loaded without its environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import TypeAlias, cast

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from numpy.typing import NDArray

from fastac.contract import HasSpaces, StateLeaf, StateTree
from fastac.envs.failure import describe
from fastac.envs.masks import MASK_SOURCES
from fastac.envs.rows import FlatBox, Reading
from fastac.envs.spaces import ArraySpace, SquashedBox

_Tree: TypeAlias = dict[str, "StateTree | StateLeaf"]

_MOST_NUMBERS = 100_000_000  # most elements of an observation; a larger shape is taken for an error
_DTYPES = (
    "float16",
    "float32",
    "float64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
)


@dataclass(frozen=True, slots=True)
class Spaces:
    """The spaces that a policy was trained for; see `VecEnv`."""

    single_observation_space: ArraySpace
    single_action_space: ArraySpace


class UnreadSpace(Space[object]):
    """Stands for a key that a policy leaves out, of a kind that is not saved, such as a Text."""

    def sample(self, mask: object = None, probability: object = None) -> None:
        """Return None, which is not looked at."""

    def contains(self, x: object) -> bool:
        """Accept anything."""
        return True


def save_spaces(envs: HasSpaces) -> StateTree:
    """Return the spaces of environments as a state tree."""
    return {"observation": _save(envs.single_observation_space), "action": _save(envs.single_action_space)}


def load_spaces(state: StateTree) -> Spaces:
    """Return the spaces saved by `save_spaces`.

    Raises:
        ValueError: the state tree is not valid.
    """
    try:
        return Spaces(_load(_branch(state, "observation")), _load(_branch(state, "action")))
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the spaces that were saved with the policy cannot be read ({describe(error)}).") from error


@singledispatch
def _save(space: object) -> _Tree:
    assert isinstance(space, Space), f"{space} is no space"
    return {"kind": "unread"}  # check_spaces accepts others only where they are left out


@_save.register
def _(space: Box) -> _Tree:
    bounds = {"low": _shrink(space.low), "high": _shrink(space.high)}
    return {"kind": "box", "dtype": np.dtype(space.dtype).name, "shape": np.array(space.shape, np.int64), **bounds}


def _shrink(bound: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a single element if all are equal, since an image has tens of thousands."""
    first = bound.reshape(-1)[:1]
    return first if bound.size and (bound == first).all() else np.array(bound)


@_save.register
def _(space: FlatBox) -> _Tree:
    reading = space.reading
    keys = {name: _save_keys(getattr(reading, name)) for name in _KEYS}
    mask = {"mask_source": reading.mask_source, "mask_size": reading.mask_size}
    return {"kind": "flat", "original": _save(space.original), **keys, **mask}


_KEYS = ("drop_keys", "critic_keys")


def _save_keys(keys: tuple[str, ...]) -> StateTree:
    return {str(i): key for i, key in enumerate(keys)}


@_save.register
def _(space: SquashedBox) -> _Tree:
    return {"kind": "squashed", "original": _save(Box(space.low, space.high, space.shape, space.low.dtype.type))}


@_save.register
def _(space: Discrete) -> _Tree:
    return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}


@_save.register
def _(space: MultiDiscrete) -> _Tree:
    return {"kind": "multidiscrete", "nvec": np.array(space.nvec), "start": np.array(space.start)}


@_save.register
def _(space: MultiBinary) -> _Tree:
    return {"kind": "multibinary", "shape": np.array(space.shape, np.int64), "is_row": isinstance(space.n, int)}


@_save.register(Dict)
def _(space: Dict) -> _Tree:
    parts: _Tree = {str(i): {"name": name, "space": _save(part)} for i, (name, part) in enumerate(space.items())}
    return {"kind": "dict", "parts": parts}


@_save.register(Tuple)
def _(space: Tuple[object]) -> _Tree:
    return {"kind": "tuple", "parts": {str(i): _save(part) for i, part in enumerate(space.spaces)}}


def _load(state: StateTree) -> ArraySpace:
    kind = state["kind"]
    if kind not in _LOADERS:
        raise ValueError(f"a space is a {kind!r}, expected one of {', '.join(_LOADERS)}")
    return cast(ArraySpace, _LOADERS[str(kind)](state))


def _load_box(state: StateTree) -> Box:
    dtype, shape = str(state["dtype"]), _numbers(state, "shape")
    if dtype not in _DTYPES:
        raise ValueError(f"a space has the dtype {dtype!r}, expected one of {', '.join(_DTYPES)}")
    if not 0 <= math.prod(shape) <= _MOST_NUMBERS:
        raise ValueError(f"a space has the shape {shape}, expected at most {_MOST_NUMBERS:,} numbers")
    low, high = (np.broadcast_to(np.array(state[name], dtype), shape) for name in ("low", "high"))
    return Box(low, high, shape, np.dtype(dtype).type)


def _load_dict(state: StateTree) -> Dict:
    parts = [_branch(_branch(state, "parts"), str(i)) for i in range(len(_branch(state, "parts")))]
    return Dict([(str(part["name"]), _load(_branch(part, "space"))) for part in parts])


def _load_tuple(state: StateTree) -> Tuple[object]:
    parts = _branch(state, "parts")
    return Tuple([_load(_branch(parts, str(i))) for i in range(len(parts))])


def _load_reading(state: StateTree) -> Reading:
    """Return what is read; versions before there were masks saved nothing of it."""
    name, size = state.get("mask_source"), state.get("mask_size", 0)
    source = next((known for known in MASK_SOURCES if known == name), None)
    if (name is not None and source is None) or not isinstance(size, int):
        raise ValueError(f"a space has a mask of {size!r} numbers from {name!r}")
    drop_keys, critic_keys = (_load_keys(state, name) for name in _KEYS)
    return Reading(drop_keys, critic_keys, source, size)


def _load_keys(state: StateTree, name: str) -> tuple[str, ...]:
    return tuple(map(str, _branch(state, name).values())) if name in state else ()


_LOADERS: Mapping[str, Callable[[StateTree], Space[object]]] = {
    "box": _load_box,
    "flat": lambda state: FlatBox(_load(_branch(state, "original")), _load_reading(state)),
    "squashed": lambda state: SquashedBox(_load(_branch(state, "original"))),
    "discrete": lambda state: Discrete(_number(state, "n"), start=_number(state, "start")),
    "multidiscrete": lambda state: MultiDiscrete(np.array(state["nvec"]), start=np.array(state["start"])),
    "multibinary": lambda state: MultiBinary(_numbers(state, "shape")[0 if state["is_row"] else slice(None)]),
    "dict": _load_dict,
    "tuple": _load_tuple,
    "unread": lambda state: UnreadSpace(),
}


def _branch(state: StateTree, name: str) -> StateTree:
    branch = state[name]
    if not isinstance(branch, Mapping):
        raise ValueError(f"a space has {branch!r} as {name!r}, expected a mapping")
    return branch


def _number(state: StateTree, name: str) -> int:
    number = state[name]
    if not isinstance(number, int):
        raise ValueError(f"a space has {number!r} as {name!r}, expected a whole number")
    return number


def _numbers(state: StateTree, name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in np.array(state[name]).reshape(-1))
