"""Transposed blocks of rows for the kernels of distributions: one loop per action runs over the rows."""

from __future__ import annotations

from fastac.kernels.numba_tools import ZERO, Bools, Floats, jit

# Rows per block; their scratch memory stays in L1 up to about 30 actions.
BLOCK = 128

# `row` is scratch memory with these numbers for each row of a block:
TOTAL = 0  # sum of exps
MAXIMUM = LOG_TOTAL = 1  # maximum of the logits; later the log of the sum
INVERSE = 2  # 1 / sum
ENTROPY = 3
LOG_PROB = 4  # log-prob of the action
CUMULATIVE = SLOPE = 5  # cumulative probability when sampling; d total / d log-prob in a loss
NUM_SCRATCH = 6


@jit()
def load_block(source: Floats, block: Floats, start: int, size: int, num_columns: int) -> None:
    """Transpose a block of rows; in a loop of its own, so that LLVM can use gather instructions."""
    for a in range(num_columns):
        for n in range(size):
            block[a, n] = source[(start + n) * num_columns + a]


@jit()
def store_block(block: Floats, target: Floats, start: int, size: int, num_columns: int) -> None:
    """Transpose a block back."""
    for a in range(num_columns):
        for n in range(size):
            target[(start + n) * num_columns + a] = block[a, n]


@jit()
def blank_block(block: Floats, valid: Bools, start: int, size: int, num_columns: int) -> None:
    """Write 0 to rows that are not valid."""
    for a in range(num_columns):
        for n in range(size):
            number = block[a, n]
            block[a, n] = number if valid[start + n] else ZERO
