"""What processes share: arrays in memory without a name, and a lock that a killed process does not keep.

Memory without a name goes with the last process that has it, even if that is killed.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from ctypes import c_ubyte
from functools import partial
from math import prod
from multiprocessing.sharedctypes import RawArray
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastac.memory import line_bytes, line_view, whole_lines

Scalar = TypeVar("Scalar", bound=np.generic)


class SharedArray(Generic[Scalar]):
    """An array in anonymous shared memory; it can be handed to a process that is being started.

    It begins at a cache line, and shares its lines with no other array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Scalar], apart: bool = False) -> None:
        """Allocate zeros.

        Args:
            shape: of the array.
            dtype: of its numbers.
            apart: each entry of the first axis begins at a cache line of its own, so that workers which each write
                one of them do not slow each other down; the view then has gaps.
        """
        self._shape, self._dtype = shape, dtype
        row = prod(shape[1:])
        self._padded = (shape[0], whole_lines(row, dtype.itemsize)) if apart else (shape[0], row)
        self._memory = RawArray(c_ubyte, line_bytes(self._padded, dtype))

    def view(self) -> NDArray[Scalar]:
        """Return the array over the shared memory, in whichever process this is."""
        rows = line_view(memoryview(self._memory), self._padded, self._dtype)
        return rows[:, : prod(self._shape[1:])].reshape(self._shape)


class ProcessLock:
    """A lock between processes, which one that is killed while it holds it does not keep.

    It is a lock on a file without a name: the operating system releases it with the process. Taking and
    releasing it costs 2 us.
    """

    def __init__(self, fd: int | None = None) -> None:
        """Make a new one; `fd` is the file's where another process made it.

        Raises:
            ValueError: the operating system has no such locks.
        """
        try:
            import fcntl
        except ImportError as error:
            raise ValueError(
                "this operating system has no lock that a killed process releases: train without."
            ) from error
        if fd is None:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        self._take = partial(fcntl.lockf, fd, fcntl.LOCK_EX)
        self._release = partial(fcntl.lockf, fd, fcntl.LOCK_UN)

    def __enter__(self) -> None:
        """Wait for the lock and take it."""
        self._take()

    def __exit__(self, *error: object) -> None:
        """Release it."""
        self._release()

    def __reduce__(self) -> tuple[Callable[[_Handed], ProcessLock], tuple[_Handed]]:
        """Hand it to a process that is being started."""
        from multiprocessing.reduction import DupFd  # not on Windows, which has no such lock either

        return _rebuild_lock, (DupFd(self._fd),)


class _Handed(Protocol):
    """A file descriptor on its way to another process."""

    def detach(self) -> int:
        """Return what it is there."""


def _rebuild_lock(handed: _Handed) -> ProcessLock:
    return ProcessLock(handed.detach())
