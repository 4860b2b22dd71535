"""Which spaces fastac learns in, and how a policy's action becomes the environment's."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space
from numpy.typing import NDArray

from fastac.contract import ActionArray

ArraySpace: TypeAlias = Space[NDArray[np.generic]]


def check_spaces(observation_space: ArraySpace, action_space: ArraySpace) -> None:
    """Accept what the models can take.

    Raises:
        ValueError: a space of another kind; the sentence says what is supported.
    """
    _check_observation_space(observation_space)
    _check_action_space(action_space)


def _check_observation_space(space: ArraySpace) -> None:
    is_flat = isinstance(space, Box) and len(space.shape) == 1 and space_dtype(space).kind in "fiu"
    if is_flat or (is_image(space) and space_dtype(space).kind in "fiub"):
        return
    raise ValueError(
        f"the observation space is {space}, expected a Box of one dimension, or of three for an image, with a float or "
        "integer dtype (an image's may be bool): flatten it with gymnasium.wrappers.FlattenObservation."
    )


def _check_action_space(space: ArraySpace) -> None:
    if isinstance(space, Discrete):
        return
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return
    if isinstance(space, Box) and len(space.shape) == 1 and space_dtype(space).kind == "f":
        return
    raise ValueError(
        f"the action space is {space}, expected a Discrete, a MultiDiscrete of one dimension, or a Box of one "
        "dimension with a float dtype: wrap the environment with gymnasium.wrappers.TransformAction."
    )


class ActionMap(Protocol):
    """Turns a policy's actions `[N, *action_shape]` into the environments'.

    The result is always a fresh array: an environment may keep the action it was given (to charge for
    jerk, say), and a reused buffer would change under it.
    """

    def __call__(self, action: ActionArray) -> ActionArray:
        """Return what the environments are stepped with."""


class ShiftedActions:
    """Discrete actions: the policy counts from 0, the space from its `start`."""

    def __init__(self, space: Discrete | MultiDiscrete) -> None:
        """Take the offset and the dtype from the space."""
        self._start = np.asarray(space.start)  # [] or [A]
        self._dtype = np.dtype(space.dtype)

    def __call__(self, action: ActionArray) -> ActionArray:
        """Add the offset, in the space's dtype."""
        shifted: ActionArray = np.add(action, self._start, dtype=self._dtype)
        return shifted


class ClippedActions:
    """Box actions: the sample is clipped only here, so that its log-probability stays that of the sample."""

    def __init__(self, space: Box) -> None:
        """Take the bounds from the space."""
        self._low, self._high = space.low, space.high  # [A]

    def __call__(self, action: ActionArray) -> ActionArray:
        """Clip to the bounds, in the space's dtype."""
        clipped = np.maximum(action, self._low, dtype=self._low.dtype, casting="same_kind")
        return np.minimum(clipped, self._high, out=clipped)


def map_actions(space: ArraySpace) -> ActionMap:
    """Return the map from a policy's actions to the space's."""
    if isinstance(space, (Discrete, MultiDiscrete)):
        return ShiftedActions(space)
    assert isinstance(space, Box)  # check_spaces let nothing else in
    return ClippedActions(space)


def action_dtype(space: ArraySpace) -> np.dtype[np.generic]:
    """Return the dtype of a policy's actions: float32 for a Box, int64 otherwise."""
    return np.dtype(np.float32 if isinstance(space, Box) else np.int64)


def is_image(space: ArraySpace) -> bool:
    """Return whether observations are images: `[C, H, W]` where the first side is below the last, else `[H, W, C]`."""
    return isinstance(space, Box) and len(space.shape) == 3


def observation_dtype(space: ArraySpace) -> np.dtype[np.generic]:
    """Return the dtype in which observations are stored: uint8 for images of such bytes, else float32."""
    return np.dtype(np.uint8 if is_image(space) and space_dtype(space) == np.uint8 else np.float32)


def space_dtype(space: ArraySpace) -> np.dtype[np.generic]:
    """Return the dtype of a space of arrays."""
    return np.dtype(space.dtype)
