"""The arrays of an observation, which may be a dict or a tuple of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from gymnasium.spaces import Dict, Tuple
from numpy.typing import NDArray

from fastac.envs.leaves import has_numbers
from fastac.envs.spaces import ArraySpace


def find_leaves(space: ArraySpace, obs: object, name: str = "") -> Iterator[tuple[str, ArraySpace, object]]:
    """Yield the name, space and value of every array of an observation; the name is empty if there is only one.

    Texts, and other keys that nobody can learn from, are left out.

    Raises:
        KeyError, IndexError, TypeError: the observation has other parts than its space.
    """
    if isinstance(space, Dict):
        if not isinstance(obs, Mapping):
            raise TypeError(f"{type(obs).__name__} in place of a dict")
        for key, part in space.spaces.items():
            yield from find_leaves(part, obs[key], f"{name}[{key!r}]")
    elif isinstance(space, Tuple):
        if not isinstance(obs, Sequence):
            raise TypeError(f"{type(obs).__name__} in place of a tuple")
        for index, part in enumerate(space.spaces):
            yield from find_leaves(part, obs[index], f"{name}[{index}]")
    elif not name or has_numbers(space):
        yield name, space, obs


def to_vector(space: ArraySpace, obs: object) -> NDArray[np.float64]:
    """Return a copy of all numbers of an observation `[D]`; empty if there are none to be had."""
    try:
        parts = [np.asarray(value, dtype=np.float64).ravel() for _, _, value in find_leaves(space, obs)]
    except (KeyError, IndexError, TypeError, ValueError):
        return np.zeros(0)
    return np.concatenate([np.zeros(0), *parts])
