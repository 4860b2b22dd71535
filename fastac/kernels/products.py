"""Small matrix products, as building blocks of Numba's forms.

For weights of up to about 128 x 128 a library's product loses much of its time in the call, and its result may differ
between processors. Here every output is one chain of fused multiply-adds in the order of the inner dimension. So an
output's bits depend neither on the processor nor on how many rows are computed together.

The inner loop is written in LLVM's terms: a tile of 6 x 16 outputs stays in vector registers (the shape of BLIS for
AVX2, Van Zee and van de Geijn 2015). A loop in Numba would read and write the outputs at every step.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastac.kernels.numba_tools import ZERO, Floats, Function, jit, load_numba

_Any: TypeAlias = Any  # LLVM values, untyped

# Numbers in a block of rows: 16 KB, so that it and the rows made from it nearly fit a first-level cache of 32 KB.
BLOCK = 4096

_LANES = 8  # floats in a vector: one register of AVX2, two of SSE or NEON
_PANEL = 16  # columns of a panel
_ARGUMENTS = "a, a_row, a_next, b, b_next, size, start, start_row, c, c_row"


def _make_tile(num_rows: int, num_vectors: int) -> Function:
    """Return a compiled function that computes `num_rows` rows of `num_vectors * _LANES` outputs.

    Its arguments are addresses, and strides in bytes: `a` with the strides of rows and of the inner dimension, `b` with
    the latter, the inner size (at least 1), then what the sums start from and the outputs, with the strides of rows.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    single, byte, index = ir.FloatType(), ir.IntType(8), ir.IntType(64)
    vector = ir.VectorType(single, _LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)

    def generate(context: _Any, builder: _Any, _signature: _Any, arguments: _Any) -> _Any:
        a, a_row, a_next, b, b_next, size, start, start_row, c, c_row = arguments
        a, b, start, c = (builder.inttoptr(address, byte.as_pointer()) for address in (a, b, start, c))
        name = f"llvm.fma.v{_LANES}f32"
        kind = ir.FunctionType(vector, [vector] * 3)
        multiply_add = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)

        def at(pointer: _Any, number: int, stride: _Any, column: int = 0) -> _Any:
            offset = builder.mul(ir.Constant(index, number), stride)
            return builder.gep(pointer, [builder.add(offset, ir.Constant(index, 4 * column))])

        def load(pointer: _Any, kind: _Any) -> _Any:
            loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()))
            loaded.align = 4
            return loaded

        def spread(value: _Any) -> _Any:
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, undefined, everywhere)

        places = [(row, column * _LANES) for row in range(num_rows) for column in range(num_vectors)]
        firsts = [load(at(start, row, start_row, column), vector) for row, column in places]
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        step, a_now, b_now = builder.phi(index), builder.phi(a.type), builder.phi(b.type)
        sums = [builder.phi(vector) for _ in places]
        weights = [load(at(b_now, 0, b_next, column * _LANES), vector) for column in range(num_vectors)]
        values = [spread(load(at(a_now, row, a_row), single)) for row in range(num_rows)]
        totals = [
            builder.call(multiply_add, [values[row], weights[column // _LANES], total])
            for (row, column), total in zip(places, sums, strict=True)
        ]
        following = builder.add(step, ir.Constant(index, 1))
        for phi, first, later in (
            (step, ir.Constant(index, 0), following),
            (a_now, a, builder.gep(a_now, [a_next])),
            (b_now, b, builder.gep(b_now, [b_next])),
            *zip(sums, firsts, totals, strict=True),
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", following, size), loop, after)
        builder.position_at_end(after)
        for (row, column), total in zip(places, totals, strict=True):
            target = builder.bitcast(at(c, row, c_row, column), vector.as_pointer())
            builder.store(total, target).align = 4
        return context.get_dummy_value()

    namespace: dict[str, Any] = {"made": lambda: (types.void(*[types.int64] * 10), generate)}
    # An intrinsic takes no *arguments.
    exec(f"def tile(context, {_ARGUMENTS}):\n    return made()\n", namespace)
    tile: Function = intrinsic(namespace["tile"])
    return tile


def _make_rows(height: int, num_vectors: int) -> Function:
    """Return a function that computes rows from `row` on, `height` at a time, and returns the first that is left."""
    tile: _Any = _make_tile(height, num_vectors) if load_numba() else None

    @jit()
    def compute_rows(
        row: int,
        num_rows: int,
        a: int,
        a_row: int,
        a_next: int,
        b: int,
        b_next: int,
        size: int,
        start: int,
        start_row: int,
        c: int,
        c_row: int,
    ) -> int:
        while row + height <= num_rows:
            first = start + row * start_row
            tile(a + row * a_row, a_row, a_next, b, b_next, size, first, start_row, c + row * c_row, c_row)
            row += height
        return row

    return compute_rows


_six_wide, _two_wide, _one_wide = (_make_rows(height, 2) for height in (6, 2, 1))
_six_narrow, _two_narrow, _one_narrow = (_make_rows(height, 1) for height in (6, 2, 1))


@jit()
def multiply(
    num_rows: int,
    size: int,
    num_columns: int,
    a: Floats,
    a_row: int,
    a_next: int,
    b: Floats,
    b_next: int,
    start: Floats,
    start_row: int,
    c: Floats,
    c_row: int,
) -> None:
    """Write `c[i, j] = start[i, j] + sum over k of a[i, k] * b[k, j]`.

    Args:
        num_rows: range of i.
        size: range of k; at 0, `c` becomes `start`.
        num_columns: range of j.
        a: flat, with the strides `a_row` of i and `a_next` of k; strides are in elements.
        a_row: see `a`.
        a_next: see `a`.
        b: flat, with the stride `b_next` of k and 1 of j.
        b_next: see `b`.
        start: flat, with the stride `start_row` of i (0 to repeat one row) and 1 of j; may be `c` itself.
        start_row: see `start`.
        c: flat, with the stride `c_row` of i and 1 of j.
        c_row: see `c`.
    """
    at_a, at_b, at_start, at_c = a.ctypes.data, b.ctypes.data, start.ctypes.data, c.ctypes.data
    rows, next_a, next_b, to_start, to_c = 4 * a_row, 4 * a_next, 4 * b_next, 4 * start_row, 4 * c_row
    if size == 0:  # a tile computes at least one step
        for i in range(num_rows):
            for j in range(num_columns):
                c[i * c_row + j] = start[i * start_row + j]
        return
    whole = num_columns // _PANEL * _PANEL
    for j in range(0, whole, _PANEL):
        b0, s0, c0 = at_b + 4 * j, at_start + 4 * j, at_c + 4 * j
        row = _six_wide(0, num_rows, at_a, rows, next_a, b0, next_b, size, s0, to_start, c0, to_c)
        row = _two_wide(row, num_rows, at_a, rows, next_a, b0, next_b, size, s0, to_start, c0, to_c)
        _one_wide(row, num_rows, at_a, rows, next_a, b0, next_b, size, s0, to_start, c0, to_c)
    for j in range(whole, num_columns, _LANES):
        _multiply_few(num_rows, size, num_columns, j, at_a, rows, next_a, b, b_next, start, start_row, c, c_row)


@jit()
def _multiply_few(
    num_rows: int,
    size: int,
    num_columns: int,
    first: int,
    a: int,
    a_row: int,
    a_next: int,
    b: Floats,
    b_next: int,
    start: Floats,
    start_row: int,
    c: Floats,
    c_row: int,
) -> None:
    """Compute up to eight columns from `first` on, in copies that have eight."""
    columns = min(_LANES, num_columns - first)
    weights, sums = np.empty((size, _LANES), np.float32), np.empty((num_rows, _LANES), np.float32)
    for k in range(size):
        for j in range(_LANES):
            weights[k, j] = b[k * b_next + first + j] if j < columns else ZERO
    for i in range(num_rows):
        for j in range(_LANES):
            sums[i, j] = start[i * start_row + first + j] if j < columns else ZERO
    at, width = sums.ctypes.data, 4 * _LANES
    row = _six_narrow(0, num_rows, a, a_row, a_next, weights.ctypes.data, width, size, at, width, at, width)
    row = _two_narrow(row, num_rows, a, a_row, a_next, weights.ctypes.data, width, size, at, width, at, width)
    _one_narrow(row, num_rows, a, a_row, a_next, weights.ctypes.data, width, size, at, width, at, width)
    for i in range(num_rows):
        for j in range(columns):
            c[i * c_row + first + j] = sums[i, j]
