"""Programs: compiled calls on memory that does not move, which run in order as one Python call.

A call from Python costs more than a small kernel. Acting on a step takes several kernels, and a rollout many steps, all
on the same memory every time. So the calls are prepared once, as rows of a table: the address of a compiled
function, and the address of its block of arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

Op = Callable[[], object]  # a call with all its arguments


class Program:
    """Compiled calls in order; calling it runs all of them.

    Attributes:
        runner: the compiled loop over the rows of a table, set when the kernels are compiled.
        repeater: the compiled loop that repeats it, likewise.
    """

    __slots__ = ("_address", "_kept", "_num", "_table")

    runner: ClassVar[Callable[[int, int], None]]
    repeater: ClassVar[Callable[[int, int, int, int], None]]

    def __init__(self, table: np.ndarray[tuple[int, int], np.dtype[np.int64]], kept: object) -> None:
        """Store the table `[num, 2]`: address of a function, and address of its block.

        A function takes the address of its block and returns nothing; it must not raise. `kept` is whatever owns the
        functions, the blocks and the memory that they point to.
        """
        self._table, self._kept = np.ascontiguousarray(table), kept
        self._address, self._num = self._table.ctypes.data, len(table)

    @classmethod
    def call(cls, address: int, arguments: Sequence[int], kept: object) -> Program:
        """Make a program of one call: the function at `address` gets `arguments` as its block of int64."""
        block = np.array(arguments, dtype=np.int64)
        return cls(np.array([[address, block.ctypes.data]]), (block, kept))

    def __call__(self) -> None:
        """Run the calls."""
        Program.runner(self._address, self._num)

    def repeat(self, times: int, until: Tensor) -> None:
        """Run all calls up to `times` times, until `until[0]`, int64, is not 0; it is read before each time."""
        assert until.dtype == torch.int64, "until is not int64"
        Program.repeater(self._address, self._num, times, until.data_ptr())

    def __len__(self) -> int:
        """Return the number of calls."""
        return self._num

    @staticmethod
    def join(programs: Sequence[Program]) -> Program:
        """Return one program that runs several, in order."""
        return Program(np.concatenate([program._table for program in programs]), [p._kept for p in programs])


def join_calls(ops: Iterable[Op]) -> list[Op]:
    """Join neighbouring programs; other calls stay as they are."""
    joined: list[Op] = []
    run: list[Program] = []
    for op in ops:
        if isinstance(op, Program):
            run.append(op)
            continue
        if run:
            joined.append(Program.join(run))
            run = []
        joined.append(op)
    return [*joined, Program.join(run)] if run else joined
