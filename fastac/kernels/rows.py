"""Copies of rows of any type, and whether their numbers are finite."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import SUMS, ZERO, Bytes, Floats, Ints, Number, U, jit
from fastac.kernels.program import Op


@kernel("B M W", is_step=True)
def gather_rows(
    rows: Annotated[Tensor, "uint8 B W"], index: Annotated[Tensor, "int64 M"], out: Annotated[Tensor, "uint8 M W"]
) -> None:
    """Copy the rows at `index`, in that order.

    Args:
        rows: rows of W bytes, see `as_bytes`.
        index: numbers from 0 to B - 1, which are not checked.
        out: written.
    """
    torch.index_select(rows, 0, index, out=out)


@kernel("N", is_step=True)
def copy_bytes(source: Annotated[Tensor, "uint8 N"], target: Annotated[Tensor, "uint8 N"]) -> None:
    """Copy memory that does not overlap, as a step of a program."""
    target.copy_(source)


def prepare_copy(source: Tensor, target: Tensor) -> Op:
    """Return the call that copies a contiguous tensor to another of the same size and type."""
    return copy_bytes.prepare(source.view(-1).view(torch.uint8), target.view(-1).view(torch.uint8))


@kernel("N", is_step=True)
def find_nonfinite(numbers: Annotated[Tensor, "float32 N"], broken: Annotated[Tensor, "int64 1"]) -> None:
    """Write whether one of the numbers is NaN or infinite."""
    broken[0] = not bool(numbers.isfinite().all())


def as_bytes(rows: Tensor) -> Tensor:
    """View contiguous rows `[B, ...]` of any type as bytes `[B, W]`."""
    return rows.view(len(rows), -1).view(torch.uint8)


# ---- Numba ------------------------------------------------------------------------------------------


@jit()
def _gather(rows: Bytes, index: Ints, out: Bytes, num_rows: int, width: int) -> None:
    for m in range(num_rows):
        begin = U(index[m]) * width
        for k in range(width):
            out[m * width + k] = rows[begin + k]


@gather_rows.numba
def _gather_rows_numba(_num_rows: int, num_taken: int, width: int, rows: Bytes, index: Ints, out: Bytes) -> None:
    if width % 4 == 0:
        _gather(rows.view(np.int32), index, out.view(np.int32), U(num_taken), U(width // 4))
    else:
        _gather(rows, index, out, U(num_taken), U(width))


@copy_bytes.numba
def _copy_bytes_numba(size: int, source: Bytes, target: Bytes) -> None:
    for k in range(U(size)):
        target[k] = source[k]


@jit(SUMS)
def _sum_zeros(numbers: Floats, size: int) -> Number:
    """Return 0, or NaN if a number is not finite."""
    total = ZERO
    for k in range(size):
        total += numbers[k] * ZERO
    return total


@find_nonfinite.numba
def _find_nonfinite_numba(size: int, numbers: Floats, broken: Ints) -> None:
    total = _sum_zeros(numbers, U(size))
    broken[0] = np.int64(0) if total == total else np.int64(1)
