"""Recurrent cells over sequences, forward and backward through time, without autograd.

Rows are time first: row `t * N + n` is step t of sequence n. The products of all rows with the input weights come from
the matrix library before these kernels, and the gradients of both weights after them: only what one step needs of the
step before is here. G is 4 for an LSTM and 3 for a GRU.

`state` `[N, S]` holds what comes before the first row: the hidden units at column `offset`, an LSTM's cells after
them. A sequence is reset at every row where `start` is set.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.layers import tanh_of
from fastac.kernels.numba_tools import FUSED, HALF, ONE, ZERO, Bools, Floats, Number, U, jit


@kernel("T N H S", is_step=True)
def lstm_forward(
    gates: Annotated[Tensor, "float32 T N 4 H"],
    weight: Annotated[Tensor, "float32 H 4 H"],
    bias: Annotated[Tensor, "float32 4 H"],
    state: Annotated[Tensor, "float32 N S"],
    offset: int,
    start: Annotated[Tensor, "bool T N"],
    before: Annotated[Tensor, "float32 T N H"],
    cells: Annotated[Tensor, "float32 T N H"],
    hidden: Annotated[Tensor, "float32 T N H"],
) -> None:
    """Run an LSTM (Hochreiter and Schmidhuber 1997) over T steps, as `torch.nn.LSTMCell` does.

    Args:
        gates: read: input products with their bias; written: input, forget, cell and output gate, in this order.
        weight: the transpose of torch's recurrent weight.
        bias: recurrent bias.
        state: before the first step.
        offset: first column of `state`.
        start: see the module.
        before: written: the hidden units that each step begins with.
        cells: written.
        hidden: written.
    """
    size = gates.shape[-1]
    h, c = (state[:, at : at + size] for at in (offset, offset + size))
    for t in range(len(gates)):
        going_on = ~start[t].unsqueeze(-1)
        before[t] = h * going_on
        i, f, g, o = (gates[t].flatten(1) + bias.flatten() + before[t] @ weight.flatten(1)).chunk(4, dim=1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        c = f * (c * going_on) + i * g
        h = o * torch.tanh(c)
        gates[t], cells[t], hidden[t] = torch.stack((i, f, g, o), dim=1), c, h


@kernel("T N H S", is_step=True)
def lstm_backward(
    gates: Annotated[Tensor, "float32 T N 4 H"],
    cells: Annotated[Tensor, "float32 T N H"],
    weight: Annotated[Tensor, "float32 4 H H"],
    state: Annotated[Tensor, "float32 N S"],
    offset: int,
    start: Annotated[Tensor, "bool T N"],
    d_hidden: Annotated[Tensor, "float32 T N H"],
    d_cells: Annotated[Tensor, "float32 T N H"],
    d_gates: Annotated[Tensor, "float32 T N 4 H"],
) -> None:
    """Go back through the steps of `lstm_forward`; the gradient ends at the first row, or where a sequence starts.

    Args:
        gates: as written by `lstm_forward`.
        cells: likewise.
        weight: torch's recurrent weight.
        state: before the first step.
        offset: first column of `state`.
        start: see the module.
        d_hidden: read: gradient of the outputs; written: with what comes from later steps.
        d_cells: written, likewise of the cells.
        d_gates: written: gradient of the gates before their activation.
    """
    size = gates.shape[-1]
    d_cells.zero_()
    for t in reversed(range(len(gates))):
        going_on = ~start[t].unsqueeze(-1)
        c_before = (cells[t - 1] if t else state[:, offset + size : offset + 2 * size]) * going_on
        i, f, g, o = gates[t].unbind(1)
        squashed = torch.tanh(cells[t])
        d_cells[t] += d_hidden[t] * o * (1.0 - squashed * squashed)
        d_i, d_f = d_cells[t] * g * i * (1.0 - i), d_cells[t] * c_before * f * (1.0 - f)
        d_g, d_o = d_cells[t] * i * (1.0 - g * g), d_hidden[t] * squashed * o * (1.0 - o)
        d_gates[t] = torch.stack((d_i, d_f, d_g, d_o), dim=1)
        if t:
            d_cells[t - 1] = d_cells[t] * f * going_on
            d_hidden[t - 1] += d_gates[t].flatten(1) @ weight.flatten(0, -2) * going_on


@kernel("T N H S", is_step=True)
def gru_forward(
    gates: Annotated[Tensor, "float32 T N 3 H"],
    weight: Annotated[Tensor, "float32 H 3 H"],
    bias: Annotated[Tensor, "float32 3 H"],
    state: Annotated[Tensor, "float32 N S"],
    offset: int,
    start: Annotated[Tensor, "bool T N"],
    before: Annotated[Tensor, "float32 T N H"],
    recurrent: Annotated[Tensor, "float32 T N 3 H"],
    hidden: Annotated[Tensor, "float32 T N H"],
) -> None:
    """Run a GRU (Cho et al. 2014) over T steps, as `torch.nn.GRUCell` does.

    Args:
        gates: read: input products with their bias; written: reset gate, update gate and candidate, in this order.
        weight: the transpose of torch's recurrent weight.
        bias: recurrent bias.
        state: before the first step.
        offset: first column of `state`.
        start: see the module.
        before: written: the hidden units that each step begins with.
        recurrent: written: their products with the weights, with the bias.
        hidden: written.
    """
    size = gates.shape[-1]
    h = state[:, offset : offset + size]
    for t in range(len(gates)):
        before[t] = h * ~start[t].unsqueeze(-1)
        recurrent[t] = (bias.flatten() + before[t] @ weight.flatten(1)).view_as(recurrent[t])
        (x_r, x_z, x_n), (h_r, h_z, h_n) = gates[t].unbind(1), recurrent[t].unbind(1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        h = (1.0 - z) * n + z * before[t]
        gates[t], hidden[t] = torch.stack((r, z, n), dim=1), h


@kernel("T N H", is_step=True)
def gru_backward(
    gates: Annotated[Tensor, "float32 T N 3 H"],
    recurrent: Annotated[Tensor, "float32 T N 3 H"],
    before: Annotated[Tensor, "float32 T N H"],
    weight: Annotated[Tensor, "float32 3 H H"],
    start: Annotated[Tensor, "bool T N"],
    d_hidden: Annotated[Tensor, "float32 T N H"],
    d_gates: Annotated[Tensor, "float32 T N 3 H"],
    d_recurrent: Annotated[Tensor, "float32 T N 3 H"],
) -> None:
    """Go back through the steps of `gru_forward`; the gradient ends at the first row, or where a sequence starts.

    Args:
        gates: as written by `gru_forward`.
        recurrent: likewise.
        before: likewise.
        weight: torch's recurrent weight.
        start: see the module.
        d_hidden: read: gradient of the outputs; written: with what comes from later steps.
        d_gates: written: gradient of the gates before their activation.
        d_recurrent: written: gradient of `recurrent`.
    """
    for t in reversed(range(len(gates))):
        going_on = ~start[t].unsqueeze(-1)
        r, z, n = gates[t].unbind(1)
        d_n = d_hidden[t] * (1.0 - z) * (1.0 - n * n)
        d_z = d_hidden[t] * (before[t] - n) * z * (1.0 - z)
        d_r = d_n * recurrent[t, :, 2] * r * (1.0 - r)
        d_gates[t], d_recurrent[t] = torch.stack((d_r, d_z, d_n), dim=1), torch.stack((d_r, d_z, d_n * r), dim=1)
        if t:
            carried = d_hidden[t] * z + d_recurrent[t].flatten(1) @ weight.flatten(0, -2)
            d_hidden[t - 1] += carried * going_on


# ---- Numba ------------------------------------------------------------------------------------------


@jit(FUSED)
def _sigmoid(x: Number) -> Number:
    return HALF * tanh_of(HALF * x) + HALF


@jit(FUSED)
def _sigmoids(y: Floats, begin: int, size: int) -> None:
    for j in range(size):
        y[begin + j] = _sigmoid(y[begin + j])


@jit()
def _recall(source: Floats, begin: int, is_start: bool, target: Floats, to: int, size: int) -> None:
    """Copy what is remembered, or zeros at a start."""
    kept = ZERO if is_start else ONE
    for j in range(size):
        target[to + j] = kept * source[begin + j]


@jit()
def _add(source: Floats, target: Floats, to: int, size: int) -> None:
    for j in range(size):
        target[to + j] += source[j]


@jit(FUSED)
def _add_four_rows(
    x: Floats, x_row: int, weight: Floats, y: Floats, y_row: int, num_inputs: int, num_outputs: int
) -> None:
    """Add four rows' products with `weight`, four inputs at a time, so that each loaded weight is used four times."""
    y0, x0 = y_row * num_outputs, x_row * num_inputs
    y1, x1 = y0 + num_outputs, x0 + num_inputs
    y2, x2 = y1 + num_outputs, x1 + num_inputs
    y3, x3 = y2 + num_outputs, x2 + num_inputs
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
def _add_one_row(
    x: Floats, x_row: int, weight: Floats, y: Floats, y_row: int, num_inputs: int, num_outputs: int
) -> None:
    y0, x0 = y_row * num_outputs, x_row * num_inputs
    fours = num_inputs // U(4) * U(4)
    for k in range(U(0), fours, U(4)):
        a0, a1, a2, a3 = x[x0 + k], x[x0 + k + U(1)], x[x0 + k + U(2)], x[x0 + k + U(3)]
        w0 = k * num_outputs
        w1, w2, w3 = w0 + num_outputs, w0 + U(2) * num_outputs, w0 + U(3) * num_outputs
        for j in range(num_outputs):
            y[y0 + j] += a0 * weight[w0 + j] + a1 * weight[w1 + j] + a2 * weight[w2 + j] + a3 * weight[w3 + j]
    for k in range(fours, num_inputs):
        value = x[x0 + k]
        for j in range(num_outputs):
            y[y0 + j] += value * weight[k * num_outputs + j]


@jit(FUSED)
def _add_products(
    x: Floats,
    weight: Floats,
    y: Floats,
    begin: int,
    num: int,
    num_inputs: int,
    num_outputs: int,
    goes_back: bool,
    start: Bools,
) -> None:
    """Add `x @ weight` of `num` rows, from row `begin`, to `y`.

    With `goes_back` they are added to the step before, and rows where a sequence starts are left out. Weights of a few
    hundred columns stream through the cache; tiles of columns in registers (`products.py`) are slower here, because
    there are few rows and a column's weights lie a kilobyte apart.
    """
    shift = num if goes_back else U(0)
    row: Number = begin
    end = begin + num
    while row < end:
        are_four: Number = row + U(4) <= end
        if goes_back and are_four:
            are_four = not (start[row] or start[row + U(1)] or start[row + U(2)] or start[row + U(3)])
        if are_four:
            _add_four_rows(x, row, weight, y, row - shift, num_inputs, num_outputs)
            row += U(4)
        else:
            if not (goes_back and start[row]):
                _add_one_row(x, row, weight, y, row - shift, num_inputs, num_outputs)
            row += U(1)


@jit(FUSED)
def _lstm_units(gates: Floats, cells: Floats, hidden: Floats, row: int, size: int) -> None:
    """Compute a row's gates, cells and hidden units; `cells` holds the cells before."""
    c0, i0 = row * size, row * U(4) * size
    f0, g0, o0 = i0 + size, i0 + U(2) * size, i0 + U(3) * size
    _sigmoids(gates, i0, U(2) * size)
    _sigmoids(gates, o0, size)
    for j in range(size):
        gates[g0 + j] = tanh_of(gates[g0 + j])
    for j in range(size):
        cells[c0 + j] = gates[f0 + j] * cells[c0 + j] + gates[i0 + j] * gates[g0 + j]
    for j in range(size):
        hidden[c0 + j] = gates[o0 + j] * tanh_of(cells[c0 + j])


@lstm_forward.numba
def _lstm_forward_numba(
    num_steps: int,
    num_sequences: int,
    num_units: int,
    state_size: int,
    gates: Floats,
    weight: Floats,
    bias: Floats,
    state: Floats,
    offset: int,
    start: Bools,
    before: Floats,
    cells: Floats,
    hidden: Floats,
) -> None:
    num, size, width, first = U(num_sequences), U(num_units), U(state_size), U(offset)
    rows = U(num_steps) * num
    for begin in range(U(0), rows, num):
        for n in range(num):
            row, at = begin + n, n * width + first
            if begin == U(0):
                _recall(state, at, start[row], before, row * size, size)
                _recall(state, at + size, start[row], cells, row * size, size)
            else:
                _recall(hidden, (row - num) * size, start[row], before, row * size, size)
                _recall(cells, (row - num) * size, start[row], cells, row * size, size)
            _add(bias, gates, row * U(4) * size, U(4) * size)
        _add_products(before, weight, gates, begin, num, size, U(4) * size, False, start)
        for row in range(begin, begin + num):
            _lstm_units(gates, cells, hidden, row, size)


@jit(FUSED)
def _lstm_units_back(
    gates: Floats, cells: Floats, d_hidden: Floats, d_cells: Floats, d_gates: Floats, row: int, size: int
) -> None:
    """Compute a row's gradients of gates and cells; the forget gate's of `d_gates` holds the cells before."""
    c0, i0 = row * size, row * U(4) * size
    f0, g0, o0 = i0 + size, i0 + U(2) * size, i0 + U(3) * size
    for j in range(size):
        d_gates[o0 + j] = tanh_of(cells[c0 + j])
    for j in range(size):
        d_cells[c0 + j] += d_hidden[c0 + j] * gates[o0 + j] * (ONE - d_gates[o0 + j] * d_gates[o0 + j])
    for j in range(size):
        d_gates[o0 + j] *= d_hidden[c0 + j] * gates[o0 + j] * (ONE - gates[o0 + j])
    for j in range(size):
        d_gates[f0 + j] *= d_cells[c0 + j] * gates[f0 + j] * (ONE - gates[f0 + j])
    for j in range(size):
        d_gates[i0 + j] = d_cells[c0 + j] * gates[g0 + j] * gates[i0 + j] * (ONE - gates[i0 + j])
    for j in range(size):
        d_gates[g0 + j] = d_cells[c0 + j] * gates[i0 + j] * (ONE - gates[g0 + j] * gates[g0 + j])


@lstm_backward.numba
def _lstm_backward_numba(
    num_steps: int,
    num_sequences: int,
    num_units: int,
    state_size: int,
    gates: Floats,
    cells: Floats,
    weight: Floats,
    state: Floats,
    offset: int,
    start: Bools,
    d_hidden: Floats,
    d_cells: Floats,
    d_gates: Floats,
) -> None:
    num, size, width, first = U(num_sequences), U(num_units), U(state_size), U(offset)
    rows = U(num_steps) * num
    for k in range((rows - num) * size, rows * size):
        d_cells[k] = ZERO
    for back in range(U(num_steps)):
        begin = rows - num - back * num
        for n in range(num):
            row = begin + n
            c0, f0 = row * size, (row * U(4) + U(1)) * size
            if begin == U(0):
                _recall(state, n * width + first + size, start[row], d_gates, f0, size)
            else:
                _recall(cells, c0 - num * size, start[row], d_gates, f0, size)
            _lstm_units_back(gates, cells, d_hidden, d_cells, d_gates, row, size)
            if begin > U(0):
                _recall(gates, f0, start[row], d_cells, c0 - num * size, size)
                for j in range(size):
                    d_cells[c0 - num * size + j] *= d_cells[c0 + j]
        if begin > U(0):
            _add_products(d_gates, weight, d_hidden, begin, num, U(4) * size, size, True, start)


@jit(FUSED)
def _gru_units(gates: Floats, recurrent: Floats, before: Floats, hidden: Floats, row: int, size: int) -> None:
    """Compute a row's gates and hidden units."""
    h0, r0 = row * size, row * U(3) * size
    z0, n0 = r0 + size, r0 + U(2) * size
    for j in range(r0, n0):
        gates[j] = _sigmoid(gates[j] + recurrent[j])
    for j in range(size):
        gates[n0 + j] = tanh_of(gates[n0 + j] + gates[r0 + j] * recurrent[n0 + j])
    for j in range(size):
        hidden[h0 + j] = (ONE - gates[z0 + j]) * gates[n0 + j] + gates[z0 + j] * before[h0 + j]


@gru_forward.numba
def _gru_forward_numba(
    num_steps: int,
    num_sequences: int,
    num_units: int,
    state_size: int,
    gates: Floats,
    weight: Floats,
    bias: Floats,
    state: Floats,
    offset: int,
    start: Bools,
    before: Floats,
    recurrent: Floats,
    hidden: Floats,
) -> None:
    num, size, width, first = U(num_sequences), U(num_units), U(state_size), U(offset)
    rows = U(num_steps) * num
    for begin in range(U(0), rows, num):
        for n in range(num):
            row = begin + n
            if begin == U(0):
                _recall(state, n * width + first, start[row], before, row * size, size)
            else:
                _recall(hidden, (row - num) * size, start[row], before, row * size, size)
            _recall(bias, U(0), False, recurrent, row * U(3) * size, U(3) * size)
        _add_products(before, weight, recurrent, begin, num, size, U(3) * size, False, start)
        for row in range(begin, begin + num):
            _gru_units(gates, recurrent, before, hidden, row, size)


@jit(FUSED)
def _gru_units_back(
    gates: Floats,
    recurrent: Floats,
    before: Floats,
    d_hidden: Floats,
    d_gates: Floats,
    d_recurrent: Floats,
    row: int,
    size: int,
) -> None:
    """Compute a row's gradients of the gates and of `recurrent`."""
    h0, r0 = row * size, row * U(3) * size
    z0, n0 = r0 + size, r0 + U(2) * size
    for j in range(size):
        d_gates[n0 + j] = d_hidden[h0 + j] * (ONE - gates[z0 + j]) * (ONE - gates[n0 + j] * gates[n0 + j])
    for j in range(size):
        d_gates[z0 + j] = d_hidden[h0 + j] * (before[h0 + j] - gates[n0 + j]) * gates[z0 + j] * (ONE - gates[z0 + j])
    for j in range(size):
        d_gates[r0 + j] = d_gates[n0 + j] * recurrent[n0 + j] * gates[r0 + j] * (ONE - gates[r0 + j])
    for j in range(r0, n0):
        d_recurrent[j] = d_gates[j]
    for j in range(size):
        d_recurrent[n0 + j] = d_gates[n0 + j] * gates[r0 + j]


@gru_backward.numba
def _gru_backward_numba(
    num_steps: int,
    num_sequences: int,
    num_units: int,
    gates: Floats,
    recurrent: Floats,
    before: Floats,
    weight: Floats,
    start: Bools,
    d_hidden: Floats,
    d_gates: Floats,
    d_recurrent: Floats,
) -> None:
    num, size = U(num_sequences), U(num_units)
    rows = U(num_steps) * num
    for back in range(U(num_steps)):
        begin = rows - num - back * num
        for row in range(begin, begin + num):
            _gru_units_back(gates, recurrent, before, d_hidden, d_gates, d_recurrent, row, size)
            if begin > U(0) and not start[row]:
                h0, z0 = row * size, (row * U(3) + U(1)) * size
                for j in range(size):
                    d_hidden[h0 - num * size + j] += d_hidden[h0 + j] * gates[z0 + j]
        if begin > U(0):
            _add_products(d_recurrent, weight, d_hidden, begin, num, U(3) * size, size, True, start)
