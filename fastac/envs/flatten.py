"""Flattens observations that are neither vectors nor images: dicts, tuples and discrete observations.

Single environments use Gymnasium's own wrapper. `flatten_obs` flattens one observation or a whole batch in the same
way, for batched environments and for trained policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, singledispatch
from typing import TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, flatten_space
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import FlattenObservation
from numpy.typing import ArrayLike, NDArray

from fastac.contract import ActionArray, ObsArray

# An observation of an environment, or a batch. A batch of a dict or tuple space is a dict or tuple of batches.
RawObs: TypeAlias = ArrayLike | Mapping[str, "RawObs"] | Sequence["RawObs"]


class FlatBox(Box):
    """The vector space `[D]` of a flattened space.

    Attributes:
        original: the environment's own space.
    """

    def __init__(self, original: Space[ObsArray]) -> None:
        """Flatten a space that `is_flattenable`."""
        flat = flatten_space(original)
        assert isinstance(flat, Box)
        super().__init__(flat.low, flat.high, flat.shape, flat.dtype)
        self.original = original


def is_flattenable(space: object) -> bool:
    """Return whether a space can be flattened to a vector; texts, sequences and graphs have no fixed size.

    (Gymnasium also flattens texts, but to numbers without meaning.)
    """
    if isinstance(space, Dict | Tuple):
        parts = space.spaces.values() if isinstance(space, Dict) else space.spaces
        return bool(space.spaces) and all(map(is_flattenable, parts))
    return isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary)


@singledispatch
def flatten_obs(space: object, obs: RawObs, name: str = "the observation") -> ObsArray:
    """Flatten one observation of `space` to `[D]`, or a batch of N to `[N, D]`, in Gymnasium's order.

    Args:
        space: a space that `is_flattenable`.
        obs: one observation, or a batch.
        name: name of the observation in messages.

    Raises:
        ValueError: not an observation of `space`.
    """
    raise TypeError(f"{space} is not flattenable.")


@flatten_obs.register
def _(space: Box, obs: RawObs, name: str = "the observation") -> ObsArray:
    array = _to_array(obs, "fiub", "numbers", name)
    return array.reshape(*_lead(array, space.shape, name), -1)


@flatten_obs.register
def _(space: MultiBinary, obs: RawObs, name: str = "the observation") -> ObsArray:
    array = _to_array(obs, "iub", "whole numbers", name)
    return array.reshape(*_lead(array, space.shape, name), -1)


@flatten_obs.register
def _(space: Discrete, obs: RawObs, name: str = "the observation") -> ObsArray:
    count = _to_array(obs, "iub", "whole numbers", name)
    return _one_hot(np.atleast_1d(space.start), np.atleast_1d(space.n), count[..., None], (1,), name)


@flatten_obs.register
def _(space: MultiDiscrete, obs: RawObs, name: str = "the observation") -> ObsArray:
    counts = _to_array(obs, "iub", "whole numbers", name)
    return _one_hot(space.start, space.nvec, counts, space.shape, name)


@flatten_obs.register
def _(space: Dict, obs: RawObs, name: str = "the observation") -> ObsArray:
    if not isinstance(obs, Mapping):
        raise ValueError(f"{name} is a {type(obs).__name__}, expected a dict of {', '.join(space.spaces)}.")
    missing = [key for key in space.spaces if key not in obs]
    if missing:
        raise ValueError(f"{name} has no {missing[0]!r}, expected a dict of {', '.join(space.spaces)}.")
    return _join([flatten_obs(part, obs[key], f"{name}[{key!r}]") for key, part in space.spaces.items()], name)


@flatten_obs.register(Tuple)
def _(space: Tuple[object], obs: RawObs, name: str = "the observation") -> ObsArray:
    if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
        raise ValueError(f"{name} is {obs!r}, expected a tuple of {len(space.spaces)}.")
    return _join([flatten_obs(part, obs[i], f"{name}[{i}]") for i, part in enumerate(space.spaces)], name)


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


def _join(parts: list[ObsArray], name: str) -> ObsArray:
    if len({part.shape[:-1] for part in parts}) > 1:
        raise ValueError(f"the parts of {name} are not batches of one size.")
    return np.concatenate(parts, axis=-1)


def flatten_env(env: gym.Env[ObsArray, ActionArray]) -> gym.Env[ObsArray, ActionArray]:
    """Wrap one environment to flatten its observations."""
    wrapped: FlattenObservation[ObsArray, ActionArray, ObsArray] = FlattenObservation(env)
    wrapped.observation_space = FlatBox(env.observation_space)
    return wrapped


class FlattenedBatch(VectorWrapper[ObsArray, ActionArray, ObsArray, ActionArray, NDArray[np.generic]]):
    """A vector environment with flattened observations, in any autoreset mode; flattening does not loop over envs."""

    def __init__(self, env: VectorEnv[ObsArray, ActionArray, NDArray[np.generic]]) -> None:
        """Wrap `env`, whose single observation space `is_flattenable`."""
        super().__init__(env)
        self._original = env.single_observation_space
        self.single_observation_space = FlatBox(self._original)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[ObsArray, dict[str, object]]:
        """Reset, and flatten to `[N, D]`."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return flatten_obs(self._original, obs), infos

    def step(
        self, actions: ActionArray
    ) -> tuple[ObsArray, NDArray[np.generic], NDArray[np.generic], NDArray[np.generic], dict[str, object]]:
        """Step, and flatten to `[N, D]`; final observations of SAME_STEP are flattened singly, as they are few."""
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        finals = infos.get("final_obs")  # [N] of observations and None
        if isinstance(finals, np.ndarray):
            flat = np.full(len(finals), None, dtype=object)
            for index in np.flatnonzero(infos["_final_obs"]):
                flat[index] = flatten_obs(self._original, finals[index])
            infos = {**infos, "final_obs": flat}
        return flatten_obs(self._original, obs), reward, terminated, truncated, infos
