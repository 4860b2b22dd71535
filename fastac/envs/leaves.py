"""The parts of an observation, its leaves, and how the value of each becomes numbers.

`flatten_leaf` takes one observation or a whole batch in the same way, for environments and for trained policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, singledispatch
from typing import TypeAlias

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from numpy.typing import ArrayLike, NDArray

from fastac.contract import ObsArray

# An observation of an environment, or a batch. A batch of a dict or tuple space is a dict or tuple of batches.
RawObs: TypeAlias = ArrayLike | Mapping[str, "RawObs"] | Sequence["RawObs"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A part of an observation that is no Dict or Tuple itself.

    Attributes:
        path: the keys of Dicts and the places in Tuples that lead to it; empty if it is the whole observation.
        space: its space.
    """

    path: tuple[str | int, ...]
    space: Space[ObsArray]

    @property
    def key(self) -> str:
        """The path in one word, such as `image` or `goal/position`."""
        return "/".join(map(str, self.path))

    @property
    def label(self) -> str:
        """Its name in messages."""
        return "the observation" + "".join(f"[{step!r}]" for step in self.path)

    def is_below(self, keys: Sequence[str]) -> bool:
        """Return whether one of `keys` names it, or what it is a part of."""
        return any(self.key == key or self.key.startswith(f"{key}/") for key in keys)


def find_leaves(space: Space[ObsArray], path: tuple[str | int, ...] = ()) -> list[Leaf]:
    """Return the leaves of a space in Gymnasium's order."""
    if isinstance(space, Dict | Tuple):
        parts = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        return [leaf for step, part in parts for leaf in find_leaves(part, (*path, step))]
    return [Leaf(path, space)]


def has_numbers(space: object) -> bool:
    """Return whether a leaf holds a fixed number of numbers; texts, sequences and graphs do not.

    (Gymnasium also flattens texts, but to numbers without meaning.)
    """
    return isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary)


def find_value(space: Space[ObsArray], obs: RawObs, leaf: Leaf) -> RawObs:
    """Return a leaf's value in an observation of `space`, or in a batch.

    Raises:
        ValueError: the observation has no such part.
    """
    name = "the observation"
    for step in leaf.path:
        if isinstance(space, Dict):
            if not isinstance(obs, Mapping):
                raise ValueError(f"{name} is a {type(obs).__name__}, expected a dict of {', '.join(space.spaces)}.")
            if step not in obs:
                raise ValueError(f"{name} has no {step!r}, expected a dict of {', '.join(space.spaces)}.")
            space, obs = space.spaces[str(step)], obs[str(step)]
        else:
            assert isinstance(space, Tuple) and isinstance(step, int)
            if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
                raise ValueError(f"{name} is {obs!r}, expected a tuple of {len(space.spaces)}.")
            space, obs = space.spaces[step], obs[step]
        name += f"[{step!r}]"
    return obs


@singledispatch
def flatten_leaf(space: object, obs: RawObs, name: str = "the observation") -> ObsArray:
    """Flatten one value of a leaf to `[D]`, or a batch of N to `[N, D]`; categories become one-hot.

    Args:
        space: a space that `has_numbers`.
        obs: one observation, or a batch.
        name: name of the observation in messages.

    Raises:
        ValueError: not an observation of `space`.
    """
    raise TypeError(f"{space} is not flattenable.")


@flatten_leaf.register
def _(space: Box, obs: RawObs, name: str = "the observation") -> ObsArray:
    array = _to_array(obs, "fiub", "numbers", name)
    return array.reshape(*_lead(array, space.shape, name), -1)


@flatten_leaf.register
def _(space: MultiBinary, obs: RawObs, name: str = "the observation") -> ObsArray:
    array = _to_array(obs, "iub", "whole numbers", name)
    return array.reshape(*_lead(array, space.shape, name), -1)


@flatten_leaf.register
def _(space: Discrete, obs: RawObs, name: str = "the observation") -> ObsArray:
    if isinstance(obs, int | np.integer) and 0 <= int(obs) - int(space.start) < int(space.n):
        hot = np.zeros(int(space.n), dtype=np.bool_)  # of one environment, in a fifth of the time
        hot[int(obs) - int(space.start)] = True
        return hot
    count = _to_array(obs, "iub", "whole numbers", name)
    return _one_hot(np.atleast_1d(space.start), np.atleast_1d(space.n), count[..., None], (1,), name)


@flatten_leaf.register
def _(space: MultiDiscrete, obs: RawObs, name: str = "the observation") -> ObsArray:
    counts = _to_array(obs, "iub", "whole numbers", name)
    return _one_hot(space.start, space.nvec, counts, space.shape, name)


def _to_array(obs: RawObs, kinds: str, words: str, name: str) -> ObsArray:
    try:
        array: ObsArray = np.asarray(obs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers ({error}).") from error
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} is of dtype {array.dtype}, expected {words}.")
    return array


def _lead(array: ObsArray, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return `()` for one observation and `(N,)` for a batch."""
    lead = array.ndim - len(shape)
    if lead not in (0, 1) or array.shape[lead:] != shape:
        raise ValueError(
            f"{name} has shape {list(array.shape)}, expected {list(shape)}, or one dimension more for a batch."
        )
    return array.shape[:lead]


def _one_hot(
    start: NDArray[np.integer], nvec: NDArray[np.integer], counts: ObsArray, shape: tuple[int, ...], name: str
) -> ObsArray:
    """Return `[*lead, sum(nvec)]` bool for `counts` `[*lead, *shape]` that begin at `start` `[*shape]`."""
    lead = _lead(counts, shape, name)
    at = counts.astype(np.int64) - start
    if ((at < 0) | (at >= nvec)).any():
        raise ValueError(f"{name} holds a number outside of the {nvec.tolist()} from {start.tolist()} on.")
    sizes = nvec.ravel()
    hot: ObsArray = np.repeat(at.reshape(*lead, -1), sizes, axis=-1) == _places(tuple(sizes.tolist()))
    return hot


@cache
def _places(sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Return 0 to n - 1 for each size n, concatenated; cached, since every step needs it."""
    return np.concatenate([np.arange(size) for size in sizes])


def join_parts(parts: list[ObsArray], name: str) -> ObsArray:
    """Put flattened values side by side."""
    if len({part.shape[:-1] for part in parts}) > 1:
        raise ValueError(f"the parts of {name} are not batches of one size.")
    return np.concatenate(parts, axis=-1)
