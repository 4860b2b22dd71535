"""The observations of a rollout: one row each, or stacks of frames that are stored once.

Stored stacks of S frames would hold each frame S times; storing frames takes a quarter of the memory at the usual
S = 4. To build a row's stack, only the age of its episode is needed.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fastac import memory
from fastac.contract import StateTree, read_tensor
from fastac.kernels import Op, as_bytes, gather_rows, prepare_copy, stack_frames


class Observations(Protocol):
    """Observations that environments write as rows and the model reads.

    Attributes:
        rows: `[T+1, N, *row_shape]`, written in place by environments.
        size: frames per observation; 1 if a row is an observation.
        nbytes: memory of all tensors in bytes.
    """

    rows: Tensor
    size: int

    @property
    def nbytes(self) -> int:
        """Memory of all tensors in bytes."""

    @property
    def batch_nbytes(self) -> int:
        """Memory of the observations of T rows in bytes."""

    def at(self, t: int) -> Tensor:
        """Return the observations `[N, *obs_shape]` of row t, valid until the next call; t must increase by one."""

    def empty(self, num: int) -> Tensor:
        """Allocate `num` observations `[num, *obs_shape]`."""

    def batch(self) -> Tensor:
        """Return the memory that `whole` fills with the observations of the first T rows `[T * N, *obs_shape]`."""

    def whole(self, out: Tensor) -> None:
        """Fill the memory returned by `batch`."""

    def prepare_take(self, index: Tensor, out: Tensor) -> Op:
        """Return the call that writes the observations at `index`.

        Args:
            index: `[M]` int64, `t * N + n` with t below T; read by each call.
            out: `[M, *obs_shape]`, written.
        """

    def prepare_carry(self, t: int) -> Op:
        """Return the call that copies row t to row 0, for the next rollout."""

    def forget(self) -> None:
        """Prepare for a reset: row 0 will hold the first observation of an episode in every env."""

    def first(self, num_steps: int) -> Observations:
        """View the first `num_steps` rows and the row after them."""

    def get_state(self, t: int) -> StateTree:
        """Return the data of row t."""

    def set_state(self, state: StateTree) -> None:
        """Restore row 0 from `get_state`."""


class Rows:
    """Observations without frame stacking: each row is an observation."""

    size = 1

    def __init__(self, rows: Tensor) -> None:
        """Store the rows `[T+1, N, *obs_shape]`."""
        assert memory.is_aligned(rows), "observations do not begin at a cache line"
        self.rows = rows  # [T+1, N, ...]
        self._each = rows.unbind(0)
        self._flat = rows[:-1].flatten(0, 1)  # [T*N, ...]

    @property
    def nbytes(self) -> int:
        """Memory of all rows in bytes."""
        return self.rows.nbytes

    @property
    def batch_nbytes(self) -> int:
        """Memory of T rows in bytes."""
        return self._flat.nbytes

    def at(self, t: int) -> Tensor:
        """View row t."""
        return self._each[t]

    def empty(self, num: int) -> Tensor:
        """Allocate `num` observations."""
        return memory.empty((num, *self.rows.shape[2:]), self.rows.dtype)

    def batch(self) -> Tensor:
        """View the first T rows."""
        return self._flat

    def whole(self, out: Tensor) -> None:
        """Do nothing: `batch` returns a view."""

    def prepare_take(self, index: Tensor, out: Tensor) -> Op:
        """See `Observations`."""
        return gather_rows.prepare(as_bytes(self._flat), index, as_bytes(out))

    def prepare_carry(self, t: int) -> Op:
        """See `Observations`."""
        return prepare_copy(self.rows[t], self.rows[0])

    def forget(self) -> None:
        """Do nothing: there are no earlier frames."""

    def first(self, num_steps: int) -> Rows:
        """View the first rows."""
        view = copy(self)
        view.rows, view._flat = self.rows[: num_steps + 1], self._flat[: num_steps * self.rows.shape[1]]
        return view

    def get_state(self, t: int) -> StateTree:
        """Return row t."""
        return {"obs": self.rows[t].clone()}

    def set_state(self, state: StateTree) -> None:
        """Restore row 0."""
        self.rows[0] = read_tensor(state, "obs", self.rows[0])


class Stacks:
    """Observations with frame stacking: each row is a frame; the latest S are an observation `[S, *frame]`."""

    def __init__(self, frames: Tensor, start: Tensor, size: int) -> None:
        """Store the memory.

        Args:
            frames: `[S - 1 + T+1, N, *frame]` uint8; the first S - 1 come from the previous rollout.
            start: `[T+1, N]` bool, of the rollout.
            size: S.
        """
        assert memory.is_aligned(frames), "observations do not begin at a cache line"
        self.size, self.rows = size, frames[size - 1 :]
        self._frames = frames
        self._age = torch.zeros(start.shape, dtype=torch.int64)  # [T+1, N], earlier frames, at most S - 1
        self._each_age, self._each_start = list(self._age.numpy()), list(start.numpy())
        self._index = torch.arange(start.numel()).view(start.shape)  # [T+1, N]
        self._now = self.empty(start.shape[1])
        self._whole: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory of all tensors in bytes."""
        return sum(part.nbytes for part in (self._frames, self._age, self._index, self._now))

    @property
    def batch_nbytes(self) -> int:
        """Memory of T rows as stacks in bytes."""
        return self.size * self.rows[:-1].nbytes

    def at(self, t: int) -> Tensor:
        """Build the stacks of row t, always in the same memory."""
        if t:
            age = self._each_age[t]
            age[:] = self._each_age[t - 1]
            age += 1
            age[self._each_start[t]] = 0
            age.clip(max=self.size - 1, out=age)
        self._stack(self._index[t], self._now, t + 1)
        return self._now

    def empty(self, num: int) -> Tensor:
        """Allocate `num` stacks."""
        return memory.empty((num, self.size, *self._frames.shape[2:]), self._frames.dtype)

    def batch(self) -> Tensor:
        """Allocate on the first call."""
        if self._whole is None:
            self._whole = self.empty(self._index[:-1].numel())
        return self._whole

    def whole(self, out: Tensor) -> None:
        """Build the stacks of the first T rows."""
        self._stack(self._index[:-1].flatten(), out, len(self._age) - 1)

    def prepare_take(self, index: Tensor, out: Tensor) -> Op:
        """See `Observations`."""
        return partial(self._stack, index, out, len(self._age) - 1)

    def _stack(self, index: Tensor, out: Tensor, num_steps: int) -> None:
        stack_frames(self._frames[: self.size - 1 + num_steps], self._age[:num_steps], index, out)

    def prepare_carry(self, t: int) -> Op:
        """See `Observations`; the earlier frames of the stack come along."""
        return partial(self._carry, t)

    def _carry(self, t: int) -> None:
        self._frames[: self.size] = self._frames[t : t + self.size].clone()  # source and target may overlap
        self._age[0] = self._age[t]

    def forget(self) -> None:
        """Mark row 0 as having no earlier frames."""
        self._age[0] = 0

    def first(self, num_steps: int) -> Stacks:
        """View the first rows."""
        view, end = copy(self), num_steps + 1
        view.rows, view._frames = self.rows[:end], self._frames[: self.size - 1 + end]
        view._age, view._index = self._age[:end], self._index[:end]
        view._whole = self.batch()[: self._index[:num_steps].numel()]
        return view

    def get_state(self, t: int) -> StateTree:
        """Return the frames of the row's stack and its age."""
        return {"frames": self._frames[t : t + self.size].clone(), "age": self._age[t].clone()}

    def set_state(self, state: StateTree) -> None:
        """Restore row 0, its earlier frames and its age."""
        self._frames[: self.size] = read_tensor(state, "frames", self._frames[: self.size])
        self._age[0] = read_tensor(state, "age", self._age[0])
