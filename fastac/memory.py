"""Memory aligned to cache lines, for all operands of the matrix library.

On some processors the library's rounding depends on the offset of its operands within a cache line, so the same
numbers at another address give different last bits. Arrays of NumPy and of `multiprocessing` have arbitrary
alignment. The library's operands are allocated here, or checked here when they are bound. A view of such memory has
an offset that depends on shapes alone, and is therefore the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Scalar = TypeVar("Scalar", bound=np.generic)

ALIGNMENT = 64  # bytes: a cache line, and the widest register

_CPU = torch.device("cpu")


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device = _CPU) -> Tensor:
    """Allocate an uninitialized contiguous tensor; torch's own allocator aligns to cache lines."""
    return torch.empty(shape, dtype=dtype, device=device)


def zeros(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device = _CPU, pin: bool = False
) -> Tensor:
    """Allocate a contiguous tensor of zeros; pin it for copies to an accelerator if `pin`."""
    return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pin)


def copy_of(array: NDArray[np.generic], dtype: torch.dtype | None = None) -> Tensor:
    """Copy an array of any alignment into a tensor of its own dtype or of another."""
    out = empty(array.shape, dtype or torch.from_numpy(np.empty(0, array.dtype)).dtype)
    out.numpy()[...] = array
    return out


def whole_lines(count: int, itemsize: int) -> int:
    """Return the smallest number of items of `itemsize` bytes, at least `count`, that fills whole cache lines."""
    per_line = ALIGNMENT // itemsize
    return -(-count // per_line) * per_line


def line_bytes(shape: Sequence[int], dtype: np.dtype[Scalar]) -> int:
    """Return the size in bytes of a buffer for `line_view`, sufficient for any alignment."""
    return prod(shape) * dtype.itemsize + ALIGNMENT


def line_view(buffer: memoryview, shape: Sequence[int], dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
    """View a buffer of `line_bytes` as an array that starts at its first cache line."""
    raw = np.frombuffer(buffer, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def lines(shape: Sequence[int], dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
    """Allocate an aligned array of zeros."""
    return line_view(np.zeros(line_bytes(shape, dtype), np.uint8).data, shape, dtype)


def begins_line(tensor: Tensor) -> bool:
    """Return whether a tensor's first element begins a cache line; always True on an accelerator."""
    return tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0


def is_aligned(*tensors: Tensor) -> bool:
    """Return whether the memory behind each view begins at a cache line.

    A view's own offset is set by the program and does not vary between runs.
    """
    return all(t.device.type != "cpu" or t.untyped_storage().data_ptr() % ALIGNMENT == 0 for t in tensors)
