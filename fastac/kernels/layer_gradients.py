"""Backward passes of dense layers without autograd: each kernel reads the rows once."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import FUSED, ONE, ZERO, Floats, U, jit
from fastac.kernels.products import BLOCK, multiply

# Activations whose derivative is computed from their output.
Derivative: TypeAlias = Literal["identity", "relu", "tanh", "elu"]
_RELU, _TANH, _ELU = (
    get_args(Derivative).index(name) for name in ("relu", "tanh", "elu")
)  # as compiled code sees them


@kernel("M H D S", is_step=True)
def deactivate(
    d: Annotated[Tensor, "float32 M H"],
    y: Annotated[Tensor, "float32 M H"],
    x: Annotated[Tensor, "float32 M D"],
    activation: Derivative,
    adds: bool,
    d_weight: Annotated[Tensor, "float32 H D"],
    d_bias: Annotated[Tensor, "float32 S"],
) -> None:
    """Go back through the activation of a dense layer `y = activation(x @ weight.T + bias)`, and to its parameters.

    Args:
        d: the gradient of the outputs `y`, replaced by that before the activation.
        y: outputs.
        x: inputs, few of them; none leaves the weight to another function.
        activation: of the layer.
        adds: add to `d_weight` and `d_bias` instead of overwriting them.
        d_weight: gradient of the weight.
        d_bias: gradient of the bias, `S = H`; none is written if `S` is 0.
    """
    d.mul_(_derivative(y, activation))
    _write(d_weight, d.t() @ x, adds)
    if len(d_bias):
        _write(d_bias, d.sum(dim=0), adds)


@kernel("M H A B S", is_step=True)
def heads_backward(
    features: Annotated[Tensor, "float32 M H"],
    d_first: Annotated[Tensor, "float32 M A"],
    weight_first: Annotated[Tensor, "float32 A H"],
    d_second: Annotated[Tensor, "float32 M B"],
    weight_second: Annotated[Tensor, "float32 B H"],
    activation: Derivative,
    adds: bool,
    d_weight_first: Annotated[Tensor, "float32 A H"],
    d_bias_first: Annotated[Tensor, "float32 A"],
    d_weight_second: Annotated[Tensor, "float32 B H"],
    d_bias_second: Annotated[Tensor, "float32 B"],
    d: Annotated[Tensor, "float32 M H"],
    d_bias: Annotated[Tensor, "float32 S"],
) -> None:
    """Go back through two linear heads that read the same features, and through the activation that made these.

    Args:
        features: outputs of the last hidden layer.
        d_first: gradient of the first head's outputs.
        weight_first: its weight.
        d_second: gradient of the second head's outputs; `B = 0` is a trunk with one head.
        weight_second: its weight.
        activation: of the last hidden layer.
        adds: add to the gradients of parameters instead of overwriting them.
        d_weight_first: gradient of the first head's weight.
        d_bias_first: gradient of its bias.
        d_weight_second: gradient of the second head's weight.
        d_bias_second: gradient of its bias.
        d: written: the gradient before the activation of the last hidden layer.
        d_bias: gradient of that layer's bias, `S = H`; none is written if `S` is 0.
    """
    heads = (
        (d_first, weight_first, d_weight_first, d_bias_first),
        (d_second, weight_second, d_weight_second, d_bias_second),
    )
    d.zero_()
    for d_out, weight, d_weight, d_bias_out in heads:
        _write(d_weight, d_out.t() @ features, adds)
        _write(d_bias_out, d_out.sum(dim=0), adds)
        d.add_(d_out @ weight)
    d.mul_(_derivative(features, activation))
    if len(d_bias):
        _write(d_bias, d.sum(dim=0), adds)


def _derivative(y: Tensor, activation: Derivative) -> Tensor:
    if activation == "relu":
        return (y > 0.0).to(y.dtype)
    if activation == "tanh":
        return 1.0 - y * y
    return torch.where(y > 0.0, 1.0, y + 1.0) if activation == "elu" else torch.ones_like(y)


def _write(target: Tensor, found: Tensor, adds: bool) -> None:
    target.add_(found) if adds else target.copy_(found)


# ---- Numba ------------------------------------------------------------------------------------------


@jit(FUSED)
def _deactivate(d: Floats, y: Floats, size: int, activation: int) -> None:
    if activation == _RELU:
        for j in range(U(size)):
            d[j] *= ONE if y[j] > ZERO else ZERO
    elif activation == _TANH:
        for j in range(U(size)):
            d[j] *= ONE - y[j] * y[j]
    elif activation == _ELU:
        for j in range(U(size)):
            d[j] *= ONE if y[j] > ZERO else y[j] + ONE


@jit(FUSED)
def _sum_rows(source: Floats, num_rows: int, width: int, sums: Floats) -> None:
    """Add the rows of `source` to `sums`."""
    rows, size = U(num_rows), U(width)
    fours = rows // U(4) * U(4)
    for row in range(U(0), fours, U(4)):
        s0 = row * size
        s1, s2, s3 = s0 + size, s0 + U(2) * size, s0 + U(3) * size
        for j in range(size):
            sums[j] += (source[s0 + j] + source[s1 + j]) + (source[s2 + j] + source[s3 + j])
    for row in range(fours, rows):
        for j in range(size):
            sums[j] += source[row * size + j]


@jit()
def _add_products(a: Floats, num_columns: int, b: Floats, width: int, num_rows: int, c: Floats) -> None:
    """Add `a.T @ b` to `c`: all rows of `a` `[M, K]`, each times the same row of `b` `[M, H]`."""
    multiply(num_columns, num_rows, width, a, 1, num_columns, b, width, c, width, c, width)


@jit()
def _clear(array: Floats, adds: int) -> None:
    if not adds:
        array[:] = ZERO


@deactivate.numba
def _deactivate_numba(
    num_rows: int,
    num_outputs: int,
    num_inputs: int,
    num_sums: int,
    d: Floats,
    y: Floats,
    x: Floats,
    activation: int,
    adds: int,
    d_weight: Floats,
    d_bias: Floats,
) -> None:
    transposed = np.zeros(num_inputs * num_outputs, dtype=np.float32)  # [D, H]
    block = max(16, BLOCK // max(1, num_outputs))
    _clear(d_bias, adds)
    for begin in range(0, num_rows, block):
        rows, at = min(block, num_rows - begin), begin * num_outputs
        d_here = d[at:]
        _deactivate(d_here, y[at:], rows * num_outputs, activation)
        if num_sums:
            _sum_rows(d_here, rows, num_outputs, d_bias)
        _add_products(x[begin * num_inputs :], num_inputs, d_here, num_outputs, rows, transposed)
    for k in range(num_inputs):
        for j in range(num_outputs):
            at = j * num_inputs + k
            d_weight[at] = transposed[k * num_outputs + j] + (d_weight[at] if adds else ZERO)


@heads_backward.numba
def _heads_backward_numba(
    num_rows: int,
    width: int,
    num_first: int,
    num_second: int,
    num_sums: int,
    features: Floats,
    d_first: Floats,
    weight_first: Floats,
    d_second: Floats,
    weight_second: Floats,
    activation: int,
    adds: int,
    d_weight_first: Floats,
    d_bias_first: Floats,
    d_weight_second: Floats,
    d_bias_second: Floats,
    d: Floats,
    d_bias: Floats,
) -> None:
    zeros = np.zeros(width, dtype=np.float32)
    for grad in (d_weight_first, d_bias_first, d_weight_second, d_bias_second, d_bias):
        _clear(grad, adds)
    block = max(16, BLOCK // max(1, width))
    for begin in range(0, num_rows, block):
        rows, at = min(block, num_rows - begin), begin * width
        here, d_here = features[at:], d[at:]
        first, second = d_first[begin * num_first :], d_second[begin * num_second :]
        _add_products(first, num_first, here, width, rows, d_weight_first)
        _add_products(second, num_second, here, width, rows, d_weight_second)
        _sum_rows(first, rows, num_first, d_bias_first)
        _sum_rows(second, rows, num_second, d_bias_second)
        multiply(rows, num_first, width, first, num_first, 1, weight_first, width, zeros, 0, d_here, width)
        if num_second:
            multiply(rows, num_second, width, second, num_second, 1, weight_second, width, d_here, width, d_here, width)
        _deactivate(d_here, here, rows * width, activation)
        if num_sums:
            _sum_rows(d_here, rows, width, d_bias)
