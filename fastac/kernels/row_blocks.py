"""Blocks of rows, transposed: what the kernels of distributions work on. One loop per action runs over the rows."""

from __future__ import annotations

from fastac.kernels.numba_tools import ZERO, Bools, Floats, jit

# Rows worked on together; their scratch stays in L1 up to about 30 actions.
BLOCK = 128

# `row` is scratch with a number per row of a block:
TOTAL = 0  # sum of exps
MAXIMUM = LOG_TOTAL = 1  # of the logits; later the log of the sum
INVERSE = 2  # of the sum
ENTROPY = 3
LOG_PROB = 4  # of the action
CUMULATIVE = SLOPE = 5  # probability, when sampling; d total / d log-prob, in a loss
NUM_SCRATCH = 6


@jit()
def load_block(source: Floats, block: Floats, start: int, size: int, num_columns: int) -> None:
    """Transpose a block of rows; a loop that does nothing else can do it by gathering."""
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
    """Put 0 in the place of what rows hold that are not valid."""
    for a in range(num_columns):
        for n in range(size):
            number = block[a, n]
            block[a, n] = number if valid[start + n] else ZERO
