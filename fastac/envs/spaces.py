"""Which spaces fastac learns in, and how a policy's action becomes the environment's."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from numpy.typing import ArrayLike, NDArray

from fastac.contract import ActionArray
from fastac.envs.flatten import is_flattenable

ArraySpace: TypeAlias = Space[NDArray[np.generic]]


def check_spaces(observation_space: ArraySpace, action_space: ArraySpace) -> None:
    """Accept what the models can take.

    Raises:
        ValueError: a space of another kind; the sentence says what is supported.
    """
    _check_observation_space(observation_space)
    _check_action_space(action_space)


def _check_observation_space(space: ArraySpace) -> None:
    if not is_flattenable(space):
        raise ValueError(
            f"the observation space is {space}, expected a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or "
            "Tuple of these: wrap the environment with gymnasium.wrappers.TransformObservation."
        )


def _check_action_space(space: ArraySpace) -> None:
    if isinstance(space, Discrete):
        return
    if isinstance(space, MultiDiscrete | MultiBinary) and len(space.shape) == 1:
        return
    if isinstance(space, Box) and len(space.shape) == 1 and space_dtype(space).kind == "f":
        return
    raise ValueError(
        f"the action space is {space}, expected a Discrete, a MultiDiscrete or MultiBinary of one dimension, or a Box "
        "of one dimension with a float dtype: wrap the environment with gymnasium.wrappers.TransformAction."
    )


def needs_flattening(space: ArraySpace) -> bool:
    """Return whether observations are neither vectors nor images as they come."""
    return not (isinstance(space, Box) and len(space.shape) in (1, 3))


class SquashedBox(Box):
    """A Box whose policy says what is to be squashed into it; see `SquashedActions`."""

    def __init__(self, space: ArraySpace) -> None:
        """Take the bounds from an action space.

        Raises:
            ValueError: it is no Box, or has bounds that are not finite.
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
    """Turns a policy's actions `[N, *action_shape]` into the environments'.

    The result is always a fresh array: an environment may keep the action it was given (to charge for
    jerk, say), and a reused buffer would change under it.
    """

    def __call__(self, action: ActionArray) -> ActionArray:
        """Return what the environments are stepped with."""


class ShiftedActions:
    """Discrete actions: the policy counts from 0, the space from its `start`."""

    def __init__(self, start: ArrayLike, dtype: np.dtype[np.generic]) -> None:
        """Take the offset, `[]` or `[A]`, and the space's dtype."""
        self._start, self._dtype = np.asarray(start), dtype

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


class SquashedActions:
    """Box actions: the sample u is squashed into the bounds, low + (high - low) * (tanh(u) + 1) / 2.

    What the rollout stores and scores is u. The density of the squashed action differs from u's by the
    factor |da/du|, which depends on u alone and not on the parameters: it cancels in every ratio of
    probabilities and vanishes from every gradient of a log-probability, so that learning needs none of
    it. The entropy that is logged and rewarded is the Gaussian's, of u; that of the squashed action has
    no closed form.
    """

    def __init__(self, space: SquashedBox) -> None:
        """Take the bounds from the space."""
        self._low, self._high = space.low, space.high  # [A]
        self._half = 0.5 * (space.high - space.low)  # [A]

    def __call__(self, action: ActionArray) -> ActionArray:
        """Squash, in the space's dtype."""
        squashed = np.tanh(action, dtype=self._low.dtype, casting="same_kind")
        squashed += 1.0
        squashed *= self._half
        squashed += self._low
        return np.minimum(squashed, self._high, out=squashed)  # rounding may pass the bound


def map_actions(space: ArraySpace) -> ActionMap:
    """Return the map from a policy's actions to the space's."""
    if isinstance(space, Discrete | MultiDiscrete):
        return ShiftedActions(space.start, space_dtype(space))
    if isinstance(space, MultiBinary):
        return ShiftedActions(0, space_dtype(space))
    assert isinstance(space, Box)  # check_spaces let nothing else in
    return SquashedActions(space) if isinstance(space, SquashedBox) else ClippedActions(space)


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
