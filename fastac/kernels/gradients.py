"""Sums of gradients, and of their squares in float64 for the norm.

Squares are summed for each block of `SQUARES_BLOCK` elements. The norm is then the same whether one worker sums all
blocks or several workers sum some each. Gradients are added in a balanced tree, ((0 + 1) + (2 + 3)) + ((4 + 5) + 6): a
whole subtree can be summed in one place, and added to the rest in another, with the same bits.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import SUMS, Doubles, Floats, Number, U, jit

SQUARES_BLOCK = 1024  # elements; 4 KiB, so that the partial sums of eight gradients stay in the first cache


def num_blocks(size: int) -> int:
    """Return the number of blocks of a vector of this size."""
    return -(-size // SQUARES_BLOCK)


@kernel("P B", is_step=True)
def sum_squares(numbers: Annotated[Tensor, "float32 P"], squares: Annotated[Tensor, "float64 B"]) -> None:
    """Write the sum of the squares of each block of `numbers`; B is `num_blocks(P)`."""
    padding = len(squares) * SQUARES_BLOCK - len(numbers)
    padded = torch.nn.functional.pad(numbers, (0, padding))
    squares.copy_(padded.view(-1, SQUARES_BLOCK).double().square().sum(dim=1))


@kernel("K P B", is_step=True)
def sum_gradients(
    grads: Annotated[Tensor, "float32 K P"],
    begin: int,
    end: int,
    total: Annotated[Tensor, "float32 P"],
    squares: Annotated[Tensor, "float64 B"],
) -> None:
    """Add up elements `begin` to `end` of K gradients, in a balanced tree, and sum the squares of each block.

    Args:
        grads: one gradient per row.
        begin: the first element; it begins a block.
        end: the element after the last; it begins a block, or is P.
        total: the elements' sums are written; the others stay.
        squares: the sums of squares of the total's blocks are written; the others stay. B is `num_blocks(P)`.
    """
    rows = [row[begin:end] for row in grads]
    while len(rows) > 1:
        pairs = [left + right for left, right in zip(rows[::2], rows[1::2], strict=False)]
        rows = pairs + rows[2 * len(pairs) :]
    total[begin:end] = rows[0]
    first = begin // SQUARES_BLOCK
    sum_squares.reference(total[begin:end], squares[first : first + num_blocks(end - begin)])


@kernel("B S", is_step=True)
def clip_gradient(
    squares: Annotated[Tensor, "float64 B"],
    parts: Annotated[Tensor, "float64 S 5"],
    max_norm: float,
    terms: Annotated[Tensor, "float64 5"],
    norm: Annotated[Tensor, "float64 1"],
    grad_scale: Annotated[Tensor, "float64 1"],
    count: Annotated[Tensor, "float64 1"],
) -> None:
    """Find the norm of a gradient and the factor that clips it, as torch.nn.utils.clip_grad_norm_, and count the step.

    Args:
        squares: sums of squares of the gradient's blocks; they are added in order.
        parts: the loss terms of each shard.
        max_norm: the largest norm; infinity does not clip.
        terms: written: the loss terms, added up in order.
        norm: written: the norm before clipping.
        grad_scale: written: the factor; NaN if a loss term or the norm is not finite, so that no step is taken.
        count: steps so far; increased unless the factor is NaN.
    """
    found = math.sqrt(sum(squares.tolist()))
    norm.fill_(found)
    terms.zero_()
    for part in parts:
        terms += part
    if math.isfinite(found) and math.isfinite(sum(terms.tolist())):
        count += 1.0
        grad_scale.fill_(1.0 if found <= max_norm else max_norm / (found + 1e-6))
    else:
        grad_scale.fill_(math.nan)


# ---- Numba ------------------------------------------------------------------------------------------


@jit(SUMS)
def _sum_squares(numbers: Floats, size: int) -> Number:
    total = 0.0
    for k in range(size):
        number = np.float64(numbers[k])
        total += number * number
    return total


@sum_squares.numba
def _sum_squares_numba(size: int, blocks: int, numbers: Floats, squares: Doubles) -> None:
    for block in range(blocks):
        begin = block * SQUARES_BLOCK
        squares[block] = _sum_squares(numbers[begin:], U(min(SQUARES_BLOCK, size - begin)))


@jit()
def _add(one: Floats, other: Floats, total: Floats, size: int) -> None:
    for k in range(size):
        total[k] = one[k] + other[k]


@jit()
def _add_to(total: Floats, one: Floats, size: int) -> None:
    for k in range(size):
        total[k] += one[k]


@jit()
def _add_block(grads: Floats, num_grads: int, stride: int, size: int, parts: Floats, total: Floats) -> None:
    """Add up a block. Subtrees are done like a binary counter: `parts[b]` is the sum of 2 to the power b gradients."""
    for k in range(num_grads):
        level, count = 0, k
        total[:size] = grads[k * stride : k * stride + size]
        while count & 1:
            _add_to(total, parts[level * SQUARES_BLOCK :], U(size))
            level, count = level + 1, count >> 1
        parts[level * SQUARES_BLOCK : level * SQUARES_BLOCK + size] = total[:size]
    level, count = 0, num_grads
    while not count & 1:
        level, count = level + 1, count >> 1
    total[:size] = parts[level * SQUARES_BLOCK : level * SQUARES_BLOCK + size]
    level, count = level + 1, count >> 1
    while count:
        if count & 1:
            _add_to(total, parts[level * SQUARES_BLOCK :], U(size))
        level, count = level + 1, count >> 1


@sum_gradients.numba
def _sum_gradients_numba(
    num_grads: int,
    stride: int,
    blocks: int,
    grads: Floats,
    begin: int,
    end: int,
    total: Floats,
    squares: Doubles,
) -> None:
    levels = 1
    while num_grads >> levels:
        levels += 1
    parts = np.empty(levels * SQUARES_BLOCK, np.float32)
    for first in range(begin, end, SQUARES_BLOCK):
        size = min(SQUARES_BLOCK, end - first)
        if num_grads == 2:
            _add(grads[first:], grads[stride + first :], total[first:], U(size))
        else:
            _add_block(grads[first:], num_grads, stride, size, parts, total[first:])
        squares[first // SQUARES_BLOCK] = _sum_squares(total[first:], U(size))


@clip_gradient.numba
def _clip_gradient_numba(
    num_blocks: int,
    num_shards: int,
    squares: Doubles,
    parts: Doubles,
    max_norm: float,
    terms: Doubles,
    norm: Doubles,
    grad_scale: Doubles,
    count: Doubles,
) -> None:
    square, term = 0.0, 0.0
    for block in range(num_blocks):
        square += squares[block]
    for k in range(5):
        terms[k] = 0.0
        for shard in range(num_shards):
            terms[k] += parts[shard * 5 + k]
        term += terms[k]
    norm[0] = math.sqrt(square)
    if math.isfinite(norm[0]) and math.isfinite(term):
        count[0] += 1.0
        grad_scale[0] = 1.0 if norm[0] <= max_norm else max_norm / (norm[0] + 1e-6)
    else:
        grad_scale[0] = math.nan
