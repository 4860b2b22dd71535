"""Products of the backward pass of dense layers."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import ZERO, Floats
from fastac.kernels.products import BLOCK, multiply


@kernel("M K N", is_step=True)
def multiply_rows(
    a: Annotated[Tensor, "float32 M K"], b: Annotated[Tensor, "float32 K N"], c: Annotated[Tensor, "float32 M N"]
) -> None:
    """Write `c = a @ b`, such as the gradient of a layer's inputs from that of its outputs and its weight.

    Args:
        a: rows.
        b: columns.
        c: written.
    """
    c.copy_(a @ b)


@kernel("K M N", is_step=True)
def multiply_columns(
    a: Annotated[Tensor, "float32 K M"],
    b: Annotated[Tensor, "float32 K N"],
    adds: bool,
    c: Annotated[Tensor, "float32 M N"],
) -> None:
    """Write `c = a.T @ b`, such as the gradient of a layer's weight from that of its outputs and its inputs.

    Args:
        a: columns.
        b: columns.
        adds: add to `c` instead of overwriting it.
        c: written.
    """
    c.add_(a.t() @ b) if adds else c.copy_(a.t() @ b)


# ---- Numba ------------------------------------------------------------------------------------------


@multiply_rows.numba
def _multiply_rows_numba(num_rows: int, size: int, num_columns: int, a: Floats, b: Floats, c: Floats) -> None:
    zeros, block = np.zeros(num_columns, np.float32), max(16, BLOCK // max(size, num_columns))
    for begin in range(0, num_rows, block):
        rows, part, here = min(block, num_rows - begin), a[begin * size :], c[begin * num_columns :]
        multiply(rows, size, num_columns, part, size, 1, b, num_columns, zeros, 0, here, num_columns)


@multiply_columns.numba
def _multiply_columns_numba(
    size: int, num_rows: int, num_columns: int, a: Floats, b: Floats, adds: int, c: Floats
) -> None:
    if not adds:
        for k in range(num_rows * num_columns):
            c[k] = ZERO
    block = max(16, BLOCK // max(num_rows, num_columns))
    for begin in range(0, size, block):
        rows, here = min(block, size - begin), begin * num_columns
        part, other = a[begin * num_rows :], b[here:]
        multiply(num_rows, rows, num_columns, part, 1, num_rows, other, num_columns, c, num_columns, c, num_columns)
