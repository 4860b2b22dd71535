"""Backward passes of dense layers without autograd: each kernel reads the rows once."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import FUSED, ONE, ZERO, Floats, U, jit

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
def _deactivate(d: Floats, y: Floats, begin: int, size: int, activation: int) -> None:
    if activation == _RELU:
        for j in range(size):
            d[begin + j] *= ONE if y[begin + j] > ZERO else ZERO
    elif activation == _TANH:
        for j in range(size):
            output = y[begin + j]
            d[begin + j] *= ONE - output * output
    elif activation == _ELU:
        for j in range(size):
            output = y[begin + j]
            d[begin + j] *= ONE if output > ZERO else output + ONE


@jit(FUSED)
def _accumulate(
    source: Floats, begin: int, width: int, num_rows: int, factors: Floats, stride: int, num_factors: int, sums: Floats
) -> None:
    """Add to `sums` `[K, H]` the product of `factors` `[4, K]`, transposed, and up to four rows of `source`."""
    s0, s1, s2, s3 = begin, begin + width, begin + U(2) * width, begin + U(3) * width
    for k in range(num_factors):
        target = k * width
        if num_rows == U(4):
            a0, a1, a2, a3 = (
                factors[k],
                factors[stride + k],
                factors[U(2) * stride + k],
                factors[U(3) * stride + k],
            )
            for j in range(width):
                pair = a0 * source[s0 + j] + a1 * source[s1 + j]
                sums[target + j] += pair + (a2 * source[s2 + j] + a3 * source[s3 + j])
        else:
            for row in range(num_rows):
                a, at = factors[row * stride + k], begin + row * width
                for j in range(width):
                    sums[target + j] += a * source[at + j]


@jit(FUSED)
def _combine(factors: Floats, num_factors: int, row: int, weights: Floats, width: int, d: Floats, target: int) -> None:
    """Write to `d` the sum of the rows of `weights`, each times its factor; there is a multiple of four of them."""
    for k in range(U(0), num_factors, U(4)):
        at = row * num_factors + k
        a0, a1, a2, a3 = factors[at], factors[at + U(1)], factors[at + U(2)], factors[at + U(3)]
        w0 = k * width
        w1, w2, w3 = w0 + width, w0 + U(2) * width, w0 + U(3) * width
        if k == U(0):
            for j in range(width):
                pair = a0 * weights[w0 + j] + a1 * weights[w1 + j]
                d[target + j] = pair + (a2 * weights[w2 + j] + a3 * weights[w3 + j])
        else:
            for j in range(width):
                pair = a0 * weights[w0 + j] + a1 * weights[w1 + j]
                d[target + j] += pair + (a2 * weights[w2 + j] + a3 * weights[w3 + j])


@jit()
def _copy_columns(
    source: Floats, row: int, num_rows: int, num_columns: int, factors: Floats, stride: int, offset: int
) -> None:
    for k in range(num_rows):
        for column in range(num_columns):
            factors[k * stride + offset + column] = source[(row + k) * num_columns + column]


@jit()
def _store(found: Floats, begin: int, target: Floats, size: int, adds: bool) -> None:
    for k in range(size):
        target[k] = found[begin + k] + (target[k] if adds else ZERO)


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
    adds: bool,
    d_weight: Floats,
    d_bias: Floats,
) -> None:
    rows, width, inputs = U(num_rows), U(num_outputs), U(num_inputs)
    factors = np.ones(4 * (num_inputs + 1), dtype=np.float32)  # four rows of inputs, and a column of ones
    sums = np.zeros((num_inputs + 1) * num_outputs, dtype=np.float32)
    for row in range(U(0), rows, U(4)):
        here, begin = min(U(4), rows - row), row * width
        _deactivate(d, y, begin, here * width, activation)
        _copy_columns(x, row, here, inputs, factors, inputs + U(1), U(0))
        _accumulate(d, begin, width, here, factors, inputs + U(1), inputs + U(1), sums)
    _store(sums, inputs * width, d_bias, U(num_sums), adds)
    for k in range(inputs):
        for j in range(width):
            d_weight[j * inputs + k] = sums[k * width + j] + (d_weight[j * inputs + k] if adds else ZERO)


@heads_backward.numba
def _heads_backward_numba(
    num_rows: int,
    num_features: int,
    num_first: int,
    num_second: int,
    num_sums: int,
    features: Floats,
    d_first: Floats,
    weight_first: Floats,
    d_second: Floats,
    weight_second: Floats,
    activation: int,
    adds: bool,
    d_weight_first: Floats,
    d_bias_first: Floats,
    d_weight_second: Floats,
    d_bias_second: Floats,
    d: Floats,
    d_bias: Floats,
) -> None:
    rows, width, first, second = U(num_rows), U(num_features), U(num_first), U(num_second)
    fours = (num_first + num_second + 3) // 4 * 4
    outputs = U(fours)  # of both heads, side by side, filled up with zeros
    weights = np.zeros(fours * num_features, dtype=np.float32)
    _store(weight_first, U(0), weights, first * width, False)
    weights_second = weights[first * width :]
    _store(weight_second, U(0), weights_second, second * width, False)
    factors, ones = np.zeros(4 * fours, dtype=np.float32), np.ones(4, dtype=np.float32)
    sums = np.zeros(fours * num_features, dtype=np.float32)
    biases = np.zeros(fours, dtype=np.float32)
    feature_sums = np.zeros(num_features, dtype=np.float32)
    for row in range(U(0), rows, U(4)):
        here, begin = min(U(4), rows - row), row * width
        _copy_columns(d_first, row, here, first, factors, outputs, U(0))
        _copy_columns(d_second, row, here, second, factors, outputs, first)
        _accumulate(features, begin, width, here, factors, outputs, first + second, sums)
        _accumulate(factors, U(0), outputs, here, ones, U(1), U(1), biases)
        for k in range(here):
            _combine(factors, outputs, k, weights, width, d, begin + k * width)
        _deactivate(d, features, begin, here * width, activation)
        if num_sums:
            _accumulate(d, begin, width, here, ones, U(1), U(1), feature_sums)
    _store(sums, U(0), d_weight_first, first * width, adds)
    _store(sums, first * width, d_weight_second, second * width, adds)
    _store(biases, U(0), d_bias_first, first, adds)
    _store(biases, first, d_bias_second, second, adds)
    _store(feature_sums, U(0), d_bias, U(num_sums), adds)
