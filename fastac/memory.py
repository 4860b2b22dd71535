"""Memory that begins at a cache line, for whatever the matrix library reads and writes.

On some processors the library rounds by where its operands begin within a cache line, so the same numbers at
another address give other last bits. Arrays of NumPy and of `multiprocessing` begin anywhere. What the
library is given comes from here, or is checked here when it is bound. A view of such memory begins at an offset
that shapes alone decide, the same in every run.
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
FLOATS = ALIGNMENT // 4  # of them in a line

_CPU = torch.device("cpu")


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device = _CPU) -> Tensor:
    """Allocate a contiguous tensor of any content; torch's own allocator begins at cache lines."""
    return torch.empty(shape, dtype=dtype, device=device)


def zeros(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device = _CPU, pin: bool = False
) -> Tensor:
    """Allocate a contiguous tensor of zeros; pinned for copies to an accelerator."""
    return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pin)


def copy_of(array: NDArray[np.generic], dtype: torch.dtype | None = None) -> Tensor:
    """Copy an array, which may begin anywhere, into a tensor of its own dtype or of another."""
    out = empty(array.shape, dtype or torch.from_numpy(np.empty(0, array.dtype)).dtype)
    out.numpy()[...] = array
    return out


def whole_lines(count: int, itemsize: int) -> int:
    """Return the least number of items of so many bytes, at least `count`, that fills whole cache lines."""
    per_line = ALIGNMENT // itemsize
    return -(-count // per_line) * per_line


def line_bytes(shape: Sequence[int], dtype: np.dtype[Scalar]) -> int:
    """Return the bytes of a buffer that `line_view` finds room in, wherever it begins."""
    return prod(shape) * dtype.itemsize + ALIGNMENT


def line_view(buffer: memoryview, shape: Sequence[int], dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
    """View a buffer of `line_bytes` from its first cache line on."""
    raw = np.frombuffer(buffer, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def lines(shape: Sequence[int], dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
    """Allocate an array of zeros."""
    return line_view(np.zeros(line_bytes(shape, dtype), np.uint8).data, shape, dtype)


def begins_line(tensor: Tensor) -> bool:
    """Return whether a tensor's first element begins a cache line; on an accelerator nothing is asked."""
    return tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0


def is_aligned(*tensors: Tensor) -> bool:
    """Return whether the memory that each is a view of begins at a cache line.

    The view's own offset into it is the program's choice and no matter of chance.
    """
    return all(t.device.type != "cpu" or t.untyped_storage().data_ptr() % ALIGNMENT == 0 for t in tensors)
