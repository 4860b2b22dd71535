"""Dense layers without autograd."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import FUSED, ZERO, Floats, Number, U, jit

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


# For CPU tensors that do not move; networks on CUDA use captured graphs instead.
prepare_dense = dense.prepare


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
def _tanh(x: Number) -> Number:
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
            y[begin + j] = ZERO if value < ZERO else value  # NaN passes through
    elif activation == _TANH:
        for j in range(size):
            y[begin + j] = _tanh(y[begin + j])


@jit(FUSED)
def _four_rows(x: Floats, weight: Floats, bias: Floats, y: Floats, row: int, num_inputs: int, num_outputs: int) -> None:
    """Compute four rows at once, four inputs at a time, so that each loaded weight is used four times."""
    y0, x0 = row * num_outputs, row * num_inputs
    y1, x1 = y0 + num_outputs, x0 + num_inputs
    y2, x2 = y1 + num_outputs, x1 + num_inputs
    y3, x3 = y2 + num_outputs, x2 + num_inputs
    for j in range(num_outputs):
        start = bias[j]
        y[y0 + j], y[y1 + j], y[y2 + j], y[y3 + j] = start, start, start, start
    fours = num_inputs // U(4) * U(4)
    for k in range(U(0), fours, U(4)):
        a0, a1, a2, a3 = x[x0 + k], x[x0 + k + U(1)], x[x0 + k + U(2)], x[x0 + k + U(3)]
        b0, b1, b2, b3 = x[x1 + k], x[x1 + k + U(1)], x[x1 + k + U(2)], x[x1 + k + U(3)]
        c0, c1, c2, c3 = x[x2 + k], x[x2 + k + U(1)], x[x2 + k + U(2)], x[x2 + k + U(3)]
        d0, d1, d2, d3 = x[x3 + k], x[x3 + k + U(1)], x[x3 + k + U(2)], x[x3 + k + U(3)]
        w0 = k * num_outputs
        w1, w2, w3 = w0 + num_outputs, w0 + U(2) * num_outputs, w0 + U(3) * num_outputs
        for j in range(num_outputs):
            u0, u1, u2, u3 = weight[w0 + j], weight[w1 + j], weight[w2 + j], weight[w3 + j]
            y[y0 + j] += a0 * u0 + a1 * u1 + a2 * u2 + a3 * u3
            y[y1 + j] += b0 * u0 + b1 * u1 + b2 * u2 + b3 * u3
            y[y2 + j] += c0 * u0 + c1 * u1 + c2 * u2 + c3 * u3
            y[y3 + j] += d0 * u0 + d1 * u1 + d2 * u2 + d3 * u3
    for k in range(fours, num_inputs):
        for j in range(num_outputs):
            u = weight[k * num_outputs + j]
            y[y0 + j] += x[x0 + k] * u
            y[y1 + j] += x[x1 + k] * u
            y[y2 + j] += x[x2 + k] * u
            y[y3 + j] += x[x3 + k] * u


@jit(FUSED)
def _one_row(x: Floats, weight: Floats, bias: Floats, y: Floats, row: int, num_inputs: int, num_outputs: int) -> None:
    y0 = row * num_outputs
    for j in range(num_outputs):
        y[y0 + j] = bias[j]
    for k in range(num_inputs):
        value = x[row * num_inputs + k]
        for j in range(num_outputs):
            y[y0 + j] += value * weight[k * num_outputs + j]


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
    rows, inputs, outputs = U(num_rows), U(num_inputs), U(num_outputs)
    fours = rows // U(4) * U(4)
    for row in range(U(0), fours, U(4)):
        _four_rows(x, weight, bias, y, row, inputs, outputs)
        _activate(y, row * outputs, U(4) * outputs, activation)
    for row in range(fours, rows):
        _one_row(x, weight, bias, y, row, inputs, outputs)
        _activate(y, row * outputs, outputs, activation)
