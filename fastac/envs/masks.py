"""Action masks: which actions are legal, as environments tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Dict, Discrete, MultiBinary, MultiDiscrete, Space
from numpy.typing import NDArray

from fastac.contract import BoolArray, EnvFailure, ObsArray

# Where an environment has its mask: a key of its Dict observation, a key of its info, or its method `action_masks()`,
# as sb3-contrib calls it. The method comes last, since calling it costs more.
MaskSource: TypeAlias = Literal["observation", "info", "method"]
MASK_SOURCES: tuple[MaskSource, ...] = get_args(MaskSource)

MASK_KEY = "action_mask"
MASK_METHOD = "action_masks"


def count_choices(action_space: Space[ObsArray]) -> tuple[int, ...]:
    """Return how many values each component of an action has; nothing for a Box, which has no masks."""
    if isinstance(action_space, Discrete):
        return (int(action_space.n),)
    if isinstance(action_space, MultiDiscrete):
        return tuple(int(n) for n in action_space.nvec.ravel())
    if isinstance(action_space, MultiBinary):
        return (2,) * int(np.prod(action_space.shape))
    return ()


def is_in_observation(space: Space[ObsArray]) -> bool:
    """Return whether a mask is a key of the observation."""
    return isinstance(space, Dict) and MASK_KEY in space.spaces


class MaskReader:
    """Reads masks `[M]`, or `[N, M]` of a batch: for each component of an action, which of its values are legal.

    Attributes:
        size: M, the sum of the components' numbers of values.
    """

    def __init__(self, choices: tuple[int, ...]) -> None:
        """Take the number of values of each component."""
        self.size = sum(choices)
        self._shape = (self.size,)
        self._begins = np.cumsum((0, *choices[:-1]))
        self._ends = [*self._begins[1:].tolist(), self.size]

    def read(self, mask: object, num_envs: int | None = None) -> BoolArray:
        """Return a mask as an array of bools.

        Args:
            mask: numbers or bools, 0 and False are illegal; a tuple of one mask per component is taken too.
            num_envs: N, or None for a single environment.

        Raises:
            EnvFailure: it has another shape.
        """
        if num_envs is None and isinstance(mask, np.ndarray) and mask.shape == self._shape:
            legal: BoolArray = mask != 0  # what most environments return, in a tenth of the time
            return legal
        try:
            parts = [np.asarray(part) for part in mask] if isinstance(mask, tuple) else [np.asarray(mask)]
            array: BoolArray = np.concatenate([np.atleast_1d(part) for part in parts], axis=-1) != 0
        except (TypeError, ValueError) as error:
            raise EnvFailure(f"the action mask is {mask!r:.60}, expected {self.size} numbers") from error
        array = array.reshape(-1) if num_envs is None else array.reshape(len(array), -1)
        expected = (self.size,) if num_envs is None else (num_envs, self.size)
        if array.shape != expected:
            raise EnvFailure(
                f"the action mask has shape {list(np.shape(array))}, expected {list(expected)}: one number for every "
                "value of every component of an action"
            )
        return array

    def complete(self, mask: BoolArray, is_over: BoolArray | bool) -> BoolArray:
        """Return the mask after checking it; where an episode is over nobody acts, and any action is legal.

        Raises:
            EnvFailure: no action is legal, and the episode goes on.
        """
        if mask.ndim == 1 and len(self._begins) == 1 and mask.any():
            return mask  # one environment with one choice: most of them, in a fifth of the time
        has_choice = np.asarray(np.logical_or.reduceat(mask, self._begins, axis=-1).all(axis=-1))  # [N], or []
        if has_choice.all():
            return mask
        stuck = ~has_choice & ~np.asarray(is_over)
        if stuck.any():
            who = f"env {np.flatnonzero(stuck)[0]}" if stuck.ndim else "the environment"
            raise EnvFailure(
                f"the action mask of {who} allows no action, expected a legal one for every component as long as the "
                "episode goes on"
            )
        return mask | ~has_choice[..., None]

    def draw(self, rows: NDArray[np.generic], shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw legal actions `[N, *shape]` as a policy gives them, each with the same probability.

        Args:
            rows: `[N, D + M]`, with masks at their end.
            shape: of an action.
            rng: draws them.
        """
        keys = rng.random((len(rows), self.size)) * (rows[:, -self.size :] != 0)
        parts = [keys[:, begin:end].argmax(axis=1) for begin, end in zip(self._begins, self._ends, strict=True)]
        return np.stack(parts, axis=1).reshape(len(rows), *shape)


def find_mask_source(env: gym.Env[ObsArray, ObsArray], info: Mapping[str, object]) -> MaskSource | None:
    """Return where a single environment has its mask, whose last reset returned `info`; None if it has none."""
    if is_in_observation(env.observation_space):
        return "observation"
    if MASK_KEY in info:
        return "info"
    has_method = env.has_wrapper_attr(MASK_METHOD) and callable(env.get_wrapper_attr(MASK_METHOD))
    return "method" if has_method else None


def ask_mask(env: gym.Env[ObsArray, ObsArray], info: Mapping[str, object], source: MaskSource) -> object:
    """Return the mask of a single environment that is not in its observation.

    Raises:
        EnvFailure: the info has none.
    """
    if source == "method":
        return env.get_wrapper_attr(MASK_METHOD)()
    if MASK_KEY not in info:
        raise EnvFailure(f"the info has no {MASK_KEY!r}, expected one after every reset and step, as after the first")
    return info[MASK_KEY]


def read_batch_info(infos: Mapping[str, object], num_envs: int, reader: MaskReader) -> tuple[BoolArray, BoolArray]:
    """Return the masks in the infos of a vector environment `[N, M]`, and which environments told one `[N]`."""
    masks, told = np.ones((num_envs, reader.size), dtype=np.bool_), np.zeros(num_envs, dtype=np.bool_)
    found = infos.get(MASK_KEY)
    if found is None:
        return masks, told
    told = np.asarray(infos.get(f"_{MASK_KEY}", np.ones(num_envs)), dtype=np.bool_)
    if isinstance(found, np.ndarray) and found.dtype == object:  # one mask per environment, of Gymnasium's tuples
        for index in np.flatnonzero(told):
            masks[index] = reader.read(found[index])
        return masks, told
    masks[told] = reader.read(found, num_envs)[told]
    return masks, told
