"""Copies of rows of any type, chosen by index: minibatches."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import Bytes, Ints, U, jit


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
