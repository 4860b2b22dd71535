"""The observations of a rollout: one row each, or stacks of frames that are stored once.

A stack of S frames repeats each frame S times over; storing frames takes a quarter of the memory at the
usual S = 4. What stands between a row and its stack is only whether its episode is old enough.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol

import torch
from torch import Tensor

from fastac import memory
from fastac.contract import StateTree, read_tensor
from fastac.kernels import stack_frames


class Observations(Protocol):
    """What environments write by rows, and what a model sees of them.

    Attributes:
        rows: `[T+1, N, *row_shape]`, which environments write in place.
        size: frames of an observation; 1 where a row is one.
        nbytes: memory of all.
    """

    rows: Tensor
    size: int

    @property
    def nbytes(self) -> int:
        """Memory."""

    @property
    def batch_nbytes(self) -> int:
        """Memory of the observations of T rows."""

    def at(self, t: int) -> Tensor:
        """Return the observations `[N, *obs_shape]` of row t, valid until the next call; t goes up by one."""

    def empty(self, num: int) -> Tensor:
        """Allocate so many observations `[num, *obs_shape]`."""

    def batch(self) -> Tensor:
        """Return where `whole` leaves the observations of the first T rows `[T * N, *obs_shape]`: their own place."""

    def whole(self, out: Tensor) -> None:
        """Fill what `batch` returned."""

    def take(self, index: Tensor, out: Tensor) -> None:
        """Write the observations `[M, *obs_shape]` at `index` `[M]` int64, which is `t * N + n` with t below T."""

    def carry(self, t: int) -> None:
        """Make row t row 0, for the next rollout."""

    def forget(self) -> None:
        """Row 0 is about to be written, with the first observation of an episode in every env."""

    def first(self, num_steps: int) -> Observations:
        """View the first `num_steps` rows and the one after them."""

    def get_state(self, t: int) -> StateTree:
        """What row t is made of."""

    def set_state(self, state: StateTree) -> None:
        """Make what `get_state` returned row 0."""


class Rows:
    """Every row is an observation."""

    size = 1

    def __init__(self, rows: Tensor) -> None:
        """Take the rows `[T+1, N, *obs_shape]`."""
        assert memory.is_aligned(rows), "observations do not begin at a cache line"
        self.rows = rows  # [T+1, N, ...]
        self._each = rows.unbind(0)
        self._flat = rows[:-1].flatten(0, 1)  # [T*N, ...]

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.rows.nbytes

    @property
    def batch_nbytes(self) -> int:
        """Memory of T rows."""
        return self._flat.nbytes

    def at(self, t: int) -> Tensor:
        """View the row."""
        return self._each[t]

    def empty(self, num: int) -> Tensor:
        """Allocate."""
        return memory.empty((num, *self.rows.shape[2:]), self.rows.dtype)

    def batch(self) -> Tensor:
        """View the rows."""
        return self._flat

    def whole(self, out: Tensor) -> None:
        """The rows are there."""

    def take(self, index: Tensor, out: Tensor) -> None:
        """Copy the rows."""
        torch.index_select(self._flat, 0, index, out=out)

    def carry(self, t: int) -> None:
        """Copy the row."""
        self.rows[0] = self.rows[t]

    def forget(self) -> None:
        """Nothing is remembered."""

    def first(self, num_steps: int) -> Rows:
        """View some rows."""
        view = copy(self)
        view.rows, view._flat = self.rows[: num_steps + 1], self._flat[: num_steps * self.rows.shape[1]]
        return view

    def get_state(self, t: int) -> StateTree:
        """The row."""
        return {"obs": self.rows[t].clone()}

    def set_state(self, state: StateTree) -> None:
        """Take it back."""
        self.rows[0] = read_tensor(state, "obs", self.rows[0])


class Stacks:
    """Every row is a frame, of which the latest S are an observation `[S, *frame]`."""

    def __init__(self, frames: Tensor, start: Tensor, size: int) -> None:
        """Take the memory.

        Args:
            frames: `[S - 1 + T+1, N, *frame]` uint8; the first S - 1 come from the rollout before.
            start: `[T+1, N]` bool, the rollout's.
            size: S.
        """
        assert memory.is_aligned(frames), "observations do not begin at a cache line"
        self.size, self.rows = size, frames[size - 1 :]
        self._frames = frames
        self._age = torch.zeros(start.shape, dtype=torch.int64)  # [T+1, N], frames before, at most S - 1
        self._each_age, self._each_start = list(self._age.numpy()), list(start.numpy())
        self._index = torch.arange(start.numel()).view(start.shape)  # [T+1, N]
        self._now = self.empty(start.shape[1])
        self._whole: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory."""
        return sum(part.nbytes for part in (self._frames, self._age, self._index, self._now))

    @property
    def batch_nbytes(self) -> int:
        """Memory of T rows, as stacks."""
        return self.size * self.rows[:-1].nbytes

    def at(self, t: int) -> Tensor:
        """Build the stacks, always in the same memory."""
        if t:
            age = self._each_age[t]
            age[:] = self._each_age[t - 1]
            age += 1
            age[self._each_start[t]] = 0
            age.clip(max=self.size - 1, out=age)
        self._stack(self._index[t], self._now, t + 1)
        return self._now

    def empty(self, num: int) -> Tensor:
        """Allocate."""
        return memory.empty((num, self.size, *self._frames.shape[2:]), self._frames.dtype)

    def batch(self) -> Tensor:
        """Allocate, the first time."""
        if self._whole is None:
            self._whole = self.empty(self._index[:-1].numel())
        return self._whole

    def whole(self, out: Tensor) -> None:
        """Build all stacks."""
        self.take(self._index[:-1].flatten(), out)

    def take(self, index: Tensor, out: Tensor) -> None:
        """Build the stacks at `index`."""
        self._stack(index, out, len(self._age) - 1)

    def _stack(self, index: Tensor, out: Tensor, num_steps: int) -> None:
        stack_frames(self._frames[: self.size - 1 + num_steps], self._age[:num_steps], index, out)

    def carry(self, t: int) -> None:
        """Copy the row and those that its stack needs."""
        self._frames[: self.size] = self._frames[t : t + self.size].clone()  # the two may overlap
        self._age[0] = self._age[t]

    def forget(self) -> None:
        """No earlier frame belongs to row 0."""
        self._age[0] = 0

    def first(self, num_steps: int) -> Stacks:
        """View some rows."""
        view, end = copy(self), num_steps + 1
        view.rows, view._frames = self.rows[:end], self._frames[: self.size - 1 + end]
        view._age, view._index = self._age[:end], self._index[:end]
        view._whole = self.batch()[: self._index[:num_steps].numel()]
        return view

    def get_state(self, t: int) -> StateTree:
        """The frames of the row's stack, and how many of them count."""
        return {"frames": self._frames[t : t + self.size].clone(), "age": self._age[t].clone()}

    def set_state(self, state: StateTree) -> None:
        """Take them back."""
        self._frames[: self.size] = read_tensor(state, "frames", self._frames[: self.size])
        self._age[0] = read_tensor(state, "age", self._age[0])
