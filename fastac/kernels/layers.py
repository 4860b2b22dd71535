"""Dense layers without autograd."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import FUSED, ZERO, Floats, Number, U, jit
from fastac.kernels.products import BLOCK, multiply

Activation: TypeAlias = Literal["identity", "relu", "tanh"]
_RELU, _TANH = (get_args(Activation).index(name) for name in ("relu", "tanh"))  # as compiled code sees them


@kernel("N D H", is_step=True)
def dense(
    x: Annotated[Tensor, "float32 N D"],
    weight: Annotated[Tensor, "float32 D H"],
    bias: Annotated[Tensor, "float32 H"],
    activation: Activation,
    y: Annotated[Tensor, "float32 N H"],
) -> None:
    """Write `y = activation(x @ weight + bias)`.

    Args:
        x: rows of inputs.
        weight: the transpose of torch's weight.
        bias: bias of the outputs.
        activation: applied to every output.
        y: written.
    """
    activate = {"identity": lambda z: z, "relu": torch.relu, "tanh": torch.tanh}[activation]
    y.copy_(activate(x @ weight + bias))


@kernel("N D", is_step=True)
def standardize(
    x: Annotated[Tensor, "float32 N D"],
    mean: Annotated[Tensor, "float32 D"],
    scale: Annotated[Tensor, "float32 D"],
    limit: int,
    y: Annotated[Tensor, "float32 N D"],
) -> None:
    """Write `y = (x - mean) * scale`, clipped to +-limit.

    Args:
        x: rows of observations.
        mean: subtracted.
        scale: one over the deviation.
        limit: of the absolute values.
        y: written.
    """
    torch.sub(x, mean, out=y).mul_(scale).clamp_(-limit, limit)


@kernel("N E D", is_step=True)
def take_columns(rows: Annotated[Tensor, "float32 N E"], x: Annotated[Tensor, "float32 N D"]) -> None:
    """Copy the first D of E columns, such as a row's numbers without its action mask.

    Args:
        rows: at least as wide as `x`.
        x: written.
    """
    x.copy_(rows[:, : x.shape[1]])


@kernel("F", is_step=True)
def tanh(y: Annotated[Tensor, "float32 *F"]) -> None:
    """Replace every number by its tanh; on AVX2 in a tenth of the time that numpy and torch take."""
    y.tanh_()


@kernel("H D", is_step=True)
def transpose(x: Annotated[Tensor, "float32 H D"], y: Annotated[Tensor, "float32 D H"]) -> None:
    """Copy the transpose of `x` to `y`, such as a weight for `dense`."""
    y.copy_(x.t())


@kernel("N", is_step=True)
def copy_row(x: Annotated[Tensor, "float32 N"], y: Annotated[Tensor, "float32 N"]) -> None:
    """Copy `x` to `y`, as a step of a program."""
    y.copy_(x)


@kernel("N H S", is_step=True)
def write_columns(
    source: Annotated[Tensor, "float32 N H"], target: Annotated[Tensor, "float32 N S"], offset: int
) -> None:
    """Write the columns of `target` that begin at `offset`, as acting does with the state after a step."""
    target[:, offset : offset + source.shape[1]] = source


# ---- Numba ------------------------------------------------------------------------------------------

# tanh as a ratio of polynomials (the minimax fit of Eigen's fast tanh), with an error of at most 3 ulp; beyond the
# limit it is 1 in float32.
_TANH_LIMIT = np.float32(7.90531110763549805)
_P0, _P1, _P2 = np.float32(-2.76076847742355e-16), np.float32(2.00018790482477e-13), np.float32(-8.60467152213735e-11)
_P3, _P4, _P5 = np.float32(5.12229709037114e-08), np.float32(1.48572235717979e-05), np.float32(6.37261928875436e-04)
_P6 = np.float32(4.89352455891786e-03)
_Q0, _Q1 = np.float32(1.19825839466702e-06), np.float32(1.18534705686654e-04)
_Q2, _Q3 = np.float32(2.26843463243900e-03), np.float32(4.89352518554385e-03)


@jit(FUSED)
def tanh_of(x: Number) -> Number:
    """Return the hyperbolic tangent, for float32 x."""
    clamped = _TANH_LIMIT if x > _TANH_LIMIT else x  # NaN passes through
    clamped = -_TANH_LIMIT if clamped < -_TANH_LIMIT else clamped
    square = clamped * clamped
    above = (((((_P0 * square + _P1) * square + _P2) * square + _P3) * square + _P4) * square + _P5) * square + _P6
    below = ((_Q0 * square + _Q1) * square + _Q2) * square + _Q3
    return clamped * above / below


@jit(FUSED)
def _activate(y: Floats, begin: int, size: int, activation: int) -> None:
    if activation == _RELU:
        for j in range(size):
            value = y[begin + j]
            # NaN passes through. Without the sum, LLVM stores the zeros alone, one by one.
            y[begin + j] = ZERO if value < ZERO else value + ZERO
    elif activation == _TANH:
        for j in range(size):
            y[begin + j] = tanh_of(y[begin + j])


@standardize.numba
def _standardize_numba(num_rows: int, size: int, x: Floats, mean: Floats, scale: Floats, limit: int, y: Floats) -> None:
    width, most = U(size), np.float32(limit)
    for row in range(U(num_rows)):
        for k in range(width):
            value = (x[row * width + k] - mean[k]) * scale[k]
            value = most if value > most else value  # NaN passes through
            y[row * width + k] = -most if value < -most else value


@take_columns.numba
def _take_columns_numba(num_rows: int, row_width: int, num_columns: int, rows: Floats, x: Floats) -> None:
    columns = U(num_columns)
    for row in range(U(num_rows)):
        for k in range(columns):
            x[row * columns + k] = rows[row * U(row_width) + k]


@write_columns.numba
def _write_columns_numba(
    num_rows: int, num_columns: int, num_targets: int, source: Floats, target: Floats, offset: int
) -> None:
    columns = U(num_columns)
    for row in range(U(num_rows)):
        for j in range(columns):
            target[row * U(num_targets) + U(offset) + j] = source[row * columns + j]


@tanh.numba
def _tanh_numba(size: int, y: Floats) -> None:
    _activate(y, U(0), U(size), _TANH)


@transpose.numba
def _transpose_numba(num_rows: int, num_columns: int, x: Floats, y: Floats) -> None:
    rows, columns = U(num_rows), U(num_columns)
    for k in range(columns):
        for j in range(rows):
            y[k * rows + j] = x[j * columns + k]


@copy_row.numba
def _copy_row_numba(size: int, x: Floats, y: Floats) -> None:
    for k in range(U(size)):
        y[k] = x[k]


@dense.numba
def _dense_numba(
    num_rows: int,
    num_inputs: int,
    num_outputs: int,
    x: Floats,
    weight: Floats,
    bias: Floats,
    activation: int,
    y: Floats,
) -> None:
    block = max(16, BLOCK // max(num_inputs, num_outputs))
    for begin in range(0, num_rows, block):
        rows, here = min(block, num_rows - begin), y[begin * num_outputs :]
        inputs = x[begin * num_inputs :]
        multiply(rows, num_inputs, num_outputs, inputs, num_inputs, 1, weight, num_outputs, bias, 0, here, num_outputs)
        _activate(here, U(0), U(rows * num_outputs), activation)
