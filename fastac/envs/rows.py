"""Rows: what is learned from an observation, side by side in one vector, with the action mask at its end.

A row is what environments write, the rollout keeps, and models read. Encoders read the columns of their keys, the
critic may read more of them than the actor, and the head reads the mask. Whatever carries observations carries all of
these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from gymnasium.spaces import Box, Space, flatten_space

from fastac.contract import BoolArray, ObsArray
from fastac.envs.leaves import Leaf, RawObs, find_leaves, find_value, flatten_leaf, has_numbers, join_parts
from fastac.envs.masks import MASK_KEY, MaskSource

Kind: TypeAlias = Literal["numbers", "categories", "image"]

_LEAST_SIDE = 3  # of an image in a Dict; the smallest net has a kernel of 3


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read from an observation.

    Attributes:
        drop_keys: keys that are left out.
        critic_keys: keys that only the critic reads.
        mask_source: where the action mask is; None without one.
        mask_size: M, columns of the mask.
    """

    drop_keys: tuple[str, ...] = ()
    critic_keys: tuple[str, ...] = ()
    mask_source: MaskSource | None = None
    mask_size: int = 0


EVERYTHING = Reading()


@dataclass(frozen=True, slots=True)
class Part:
    """The columns of one leaf.

    Attributes:
        leaf: of the observation.
        kind: numbers, categories (one-hot) or an image.
        begin: its first column.
        end: one past its last column.
        is_critics: whether only the critic reads it.
    """

    leaf: Leaf
    kind: Kind
    begin: int
    end: int
    is_critics: bool


class FlatBox(Box):
    """The space of rows `[D + M]`.

    If no part is an image, parts are in Gymnasium's order, except that those of the critic come last. Images come after
    everything else. Rows with images of bytes are bytes, if that loses nothing.

    Attributes:
        original: the environment's own space.
        reading: what is read from its observations.
        parts: in the order of their columns.
        num_inputs: D, columns before the mask.
    """

    def __init__(self, original: Space[ObsArray], reading: Reading = EVERYTHING) -> None:
        """Lay out the rows of a space that `check_observation_space` accepts."""
        self.original, self.reading = original, reading
        kept = _sort([leaf for leaf in find_leaves(original) if not _is_left_out(leaf, reading)], reading)
        boxes = [flatten_space(leaf.space) for leaf in kept]
        assert all(isinstance(box, Box) for box in boxes)
        ends = np.cumsum([box.shape[0] for box in boxes if box.shape is not None]).tolist()
        self.parts = tuple(
            Part(leaf, _kind_of(leaf), begin, end, leaf.is_below(reading.critic_keys))
            for leaf, begin, end in zip(kept, [0, *ends], ends, strict=False)
        )
        self.num_inputs = ends[-1]
        self._mask_leaf = Leaf((MASK_KEY,), original) if reading.mask_source == "observation" else None
        self._is_vector = isinstance(original, Box) and len(original.shape) == 1
        mask = [Box(0, 1, (reading.mask_size,), np.uint8)] if reading.mask_size else []
        sides = [box for box in (*boxes, *mask) if isinstance(box, Box)]
        dtype = np.result_type(*(box.dtype for box in sides))
        if self.has_images:
            dtype = np.dtype(np.uint8 if all(map(_fits_bytes, self.parts)) else np.float32)
        with np.errstate(over="ignore"):  # bounds of 1e300 become infinite
            low, high = (np.concatenate([getattr(box, end) for box in sides]).astype(dtype) for end in ("low", "high"))
        super().__init__(low, high, low.shape, dtype.type)

    @property
    def has_images(self) -> bool:
        """Whether a part is an image."""
        return any(part.kind == "image" for part in self.parts)

    @property
    def image(self) -> Box | None:
        """The space of the image that is all there is in a row, besides its mask; None if there is more."""
        space = self.parts[0].leaf.space
        return space if len(self.parts) == 1 and self.has_images and isinstance(space, Box) else None

    @property
    def num_flat(self) -> int:
        """Columns of numbers and categories, which come before those of images."""
        return max((part.end for part in self.parts if part.kind != "image"), default=0)

    @property
    def is_plain(self) -> bool:
        """Whether rows are what Gymnasium's `FlattenObservation` makes."""
        return self.reading == EVERYTHING and not self.has_images

    def flatten(self, obs: RawObs) -> ObsArray:
        """Return what is read from one observation, `[D]`, or from a batch of N, `[N, D]`.

        Raises:
            ValueError: not an observation of the original space.
        """
        if self._is_vector and isinstance(obs, np.ndarray) and self._is_flat(obs):
            return obs
        values = [
            flatten_leaf(part.leaf.space, find_value(self.original, obs, part.leaf), part.leaf.label)
            for part in self.parts
        ]
        return values[0] if len(values) == 1 else join_parts(values, "the observation")

    def _is_flat(self, obs: ObsArray) -> bool:
        return obs.shape[-1:] == (self.num_inputs,) and obs.ndim <= 2 and obs.dtype.kind in "fiub"

    def find_mask(self, obs: RawObs) -> RawObs:
        """Return the mask in an observation or a batch, for the source `observation`."""
        assert self._mask_leaf is not None
        return find_value(self.original, obs, self._mask_leaf)

    def join(self, values: ObsArray, mask: BoolArray) -> ObsArray:
        """Return the row of flattened values and their mask."""
        row = np.empty((*values.shape[:-1], self.num_inputs + mask.shape[-1]), self.dtype)
        row[..., : self.num_inputs], row[..., self.num_inputs :] = values, mask
        return row


def check_observation_space(space: Space[ObsArray], reading: Reading) -> None:
    """Check that a space has parts that can be learned from, and the keys that `reading` names.

    Raises:
        ValueError: it has not; the message says which keys to drop.
    """
    leaves = find_leaves(space)
    _check_keys("drop_keys", reading.drop_keys, leaves)
    _check_keys("critic_keys", reading.critic_keys, leaves)
    kept = [leaf for leaf in leaves if not _is_left_out(leaf, reading)]
    odd = [leaf for leaf in kept if not has_numbers(leaf.space)]
    if odd and odd[0].path:
        keys = " ".join(leaf.key for leaf in odd)
        kind = type(odd[0].space).__name__
        raise ValueError(
            f"the observation's key {odd[0].key!r} is a {kind}, which has no fixed number of numbers to learn from: "
            f"leave it out with --drop-keys {keys}, or drop_keys={tuple(leaf.key for leaf in odd)} in Python."
        )
    if odd or not leaves:
        raise ValueError(
            f"the observation space is {space}, expected a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or "
            "Tuple of these: wrap the environment with gymnasium.wrappers.TransformObservation."
        )
    if leaves and not kept:
        raise ValueError(f"drop_keys is {reading.drop_keys}, expected at least one key to be left to learn from.")
    if not kept or any(0 in (leaf.space.shape or ()) for leaf in kept):
        raise ValueError(f"the observation space is {space}, which holds no numbers: return a constant instead.")
    if all(leaf.is_below(reading.critic_keys) for leaf in kept):
        raise ValueError(f"critic_keys is {reading.critic_keys}, expected at least one key to be left for the actor.")


def _check_keys(name: str, keys: tuple[str, ...], leaves: list[Leaf]) -> None:
    for key in keys:
        if not any(leaf.path and leaf.is_below((key,)) for leaf in leaves):
            known = ", ".join(leaf.key for leaf in leaves if leaf.path) or "none, since it is no Dict"
            raise ValueError(f"{name} has {key!r}, expected keys of the observation: {known}.")


def _is_left_out(leaf: Leaf, reading: Reading) -> bool:
    is_mask = reading.mask_source == "observation" and leaf.path[:1] == (MASK_KEY,)
    return is_mask or leaf.is_below(reading.drop_keys)


def _sort(leaves: list[Leaf], reading: Reading) -> list[Leaf]:
    """Return the leaves in the order of their columns; the sort is stable."""
    return sorted(leaves, key=lambda leaf: (_kind_of(leaf) == "image", leaf.is_below(reading.critic_keys)))


def _kind_of(leaf: Leaf) -> Kind:
    if isinstance(leaf.space, Box):
        is_image = len(leaf.space.shape) == 3 and min(sorted(leaf.space.shape)[1:]) >= _LEAST_SIDE
        return "image" if is_image else "numbers"
    return "categories"


def _fits_bytes(part: Part) -> bool:
    """Return whether bytes hold the part exactly."""
    return part.kind == "categories" or np.dtype(part.leaf.space.dtype) in (np.uint8, np.bool_)
