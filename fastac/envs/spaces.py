"""Supported spaces, and the maps from a policy's actions to those of the environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from numpy.typing import ArrayLike, NDArray

from fastac.contract import ActionArray, ObsArray
from fastac.envs.masks import MaskReader, count_choices
from fastac.envs.rows import EVERYTHING, FlatBox, Reading, check_observation_space

ArraySpace: TypeAlias = Space[NDArray[np.generic]]


def check_spaces(observation_space: ArraySpace, action_space: ArraySpace, reading: Reading = EVERYTHING) -> None:
    """Check that the models support the spaces.

    Raises:
        ValueError: an unsupported space; the message lists the supported ones.
    """
    check_observation_space(observation_space, reading)
    _check_action_space(action_space)


def _check_action_space(space: ArraySpace) -> None:
    if isinstance(space, Discrete):
        return
    if isinstance(space, MultiDiscrete | MultiBinary) and len(space.shape) == 1:
        return
    if isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] and space_dtype(space).kind == "f":
        return
    raise ValueError(
        f"the action space is {space}, expected a Discrete, a MultiDiscrete or MultiBinary of one dimension, or a Box "
        "of one dimension, not empty, with a float dtype: wrap the environment with gymnasium.wrappers.TransformAction."
    )


def needs_flattening(space: ArraySpace, reading: Reading = EVERYTHING) -> bool:
    """Return whether observations are neither vectors nor images, or have an action mask."""
    return reading != EVERYTHING or not (isinstance(space, Box) and len(space.shape) in (1, 3))


class SquashedBox(Box):
    """A Box marked for tanh squashing (squash_actions)."""

    def __init__(self, space: ArraySpace) -> None:
        """Copy the bounds of an action space.

        Raises:
            ValueError: the space is no Box, or its bounds are not finite.
        """
        if not isinstance(space, Box):
            raise ValueError(
                f"squash_actions is True, expected False: the action space is {space}, and only a Box has bounds to "
                "squash into."
            )
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(space.high - space.low).all()
        if not is_finite:
            raise ValueError(
                f"squash_actions is True, expected False: the action space is {space}, and there is no squashing into "
                "bounds that are not finite."
            )
        super().__init__(space.low, space.high, space.shape, space.low.dtype)


class ActionMap(Protocol):
    """Converts a policy's actions `[N, *action_shape]` to those of the environments.

    The result is always a new array: an environment may keep the action (for example to penalise jerk), and a reused
    buffer would overwrite it.
    """

    def __call__(self, action: ActionArray) -> ActionArray:
        """Return the actions for the environments."""


class ShiftedActions:
    """Discrete actions: policies count from 0, spaces from their `start`."""

    def __init__(self, start: ArrayLike, dtype: np.dtype[np.generic]) -> None:
        """Store the offset, `[]` or `[A]`, and the space's dtype."""
        self._start, self._dtype = np.asarray(start), dtype

    def __call__(self, action: ActionArray) -> ActionArray:
        """Add the offset, in the space's dtype."""
        shifted: ActionArray = np.add(action, self._start, dtype=self._dtype)
        return shifted


class ClippedActions:
    """Box actions: clipped only here, so the stored log-probability is that of the unclipped sample."""

    def __init__(self, space: Box) -> None:
        """Store the bounds."""
        self._low, self._high = space.low, space.high  # [A]

    def __call__(self, action: ActionArray) -> ActionArray:
        """Clip to the bounds, in the space's dtype."""
        clipped = np.maximum(action, self._low, dtype=self._low.dtype, casting="same_kind")
        return np.minimum(clipped, self._high, out=clipped)


class SquashedActions:
    """Box actions: the sample u is squashed into the bounds, low + (high - low) * (tanh(u) + 1) / 2.

    The rollout stores u and its log-prob. The density of the squashed action differs by the factor |da/du|, which
    depends on u but not on the parameters. It cancels in every probability ratio and has no effect on the gradient of
    a log-prob, so learning ignores it. The logged and rewarded entropy is that of the Gaussian u; that of the squashed
    action has no closed form.
    """

    def __init__(self, space: SquashedBox) -> None:
        """Store the bounds."""
        self._low, self._high = space.low, space.high  # [A]
        self._half = 0.5 * (space.high - space.low)  # [A]

    def __call__(self, action: ActionArray) -> ActionArray:
        """Squash to the bounds, in the space's dtype."""
        squashed = np.tanh(action, dtype=self._low.dtype, casting="same_kind")
        squashed += 1.0
        squashed *= self._half
        squashed += self._low
        return np.minimum(squashed, self._high, out=squashed)  # rounding may exceed the bound


def map_actions(space: ArraySpace) -> ActionMap:
    """Return the map from a policy's actions to those of the space."""
    if isinstance(space, Discrete | MultiDiscrete):
        return ShiftedActions(space.start, space_dtype(space))
    if isinstance(space, MultiBinary):
        return ShiftedActions(0, space_dtype(space))
    assert isinstance(space, Box)  # check_spaces accepts nothing else
    return SquashedActions(space) if isinstance(space, SquashedBox) else ClippedActions(space)


def make_drawer(row_space: ArraySpace, action_space: ArraySpace) -> Callable[[ObsArray], ActionArray]:
    """Return the function that draws a random action of the environment for a row, a legal one if rows have masks."""
    if not isinstance(row_space, FlatBox) or not row_space.reading.mask_size:
        return lambda row: action_space.sample()
    reader, rng = MaskReader(count_choices(action_space)), np.random.default_rng(0)
    to_env, shape = map_actions(action_space), action_space.shape or ()
    return lambda row: to_env(reader.draw(row[None], shape, rng))[0]


def action_dtype(space: ArraySpace) -> np.dtype[np.generic]:
    """Return the dtype of a policy's actions: float32 for a Box, int64 otherwise."""
    return np.dtype(np.float32 if isinstance(space, Box) else np.int64)


def is_image(space: ArraySpace) -> bool:
    """Return whether observations are images: `[C, H, W]` if the first side is less than the last, else `[H, W, C]`."""
    return isinstance(space, Box) and len(space.shape) == 3


def shows_image(space: ArraySpace) -> bool:
    """Return whether an image is all that observations show, perhaps in a row with an action mask."""
    return is_image(space) or (isinstance(space, FlatBox) and space.image is not None)


def observation_dtype(space: ArraySpace) -> np.dtype[np.generic]:
    """Return the dtype in which observations are stored: uint8 for uint8 images and rows of bytes, else float32."""
    has_images = is_image(space) or (isinstance(space, FlatBox) and space.has_images)
    return np.dtype(np.uint8 if has_images and space_dtype(space) == np.uint8 else np.float32)


def space_dtype(space: ArraySpace) -> np.dtype[np.generic]:
    """Return the dtype of an array space."""
    return np.dtype(space.dtype)
