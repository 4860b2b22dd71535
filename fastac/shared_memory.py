"""Memory and locks shared by processes: anonymous arrays, and a lock that is released when its holder is killed.

Anonymous memory is freed with the last process that maps it, even if that process is killed.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from ctypes import c_ubyte
from math import prod
from multiprocessing.sharedctypes import RawArray
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastac.memory import line_bytes, line_view, whole_lines
from fastac.system import file_lock

Scalar = TypeVar("Scalar", bound=np.generic)


class SharedArray(Generic[Scalar]):
    """An array in anonymous shared memory; it can be passed to a process at its start.

    It begins at a cache line, and shares no cache line with another array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Scalar], apart: bool = False) -> None:
        """Allocate zeros.

        Args:
            shape: of the array.
            dtype: of its elements.
            apart: align each entry of the first axis to its own cache line, to avoid false sharing between workers that
                write one entry each; the view then has gaps.
        """
        self._shape, self._dtype = shape, dtype
        row = prod(shape[1:])
        self._padded = (shape[0], whole_lines(row, dtype.itemsize)) if apart else (shape[0], row)
        self._memory = RawArray(c_ubyte, line_bytes(self._padded, dtype))

    def view(self) -> NDArray[Scalar]:
        """Return the array over the shared memory, in any process."""
        rows = line_view(memoryview(self._memory), self._padded, self._dtype)
        return rows[:, : prod(self._shape[1:])].reshape(self._shape)


class ProcessLock:
    """A lock between processes, which is released if its holder is killed.

    It locks an anonymous file: the operating system releases the lock with the process. Acquiring and releasing it
    costs 2 us.
    """

    def __init__(self, fd: int | None = None) -> None:
        """Create a lock; `fd` is the file descriptor of a lock that another process created.

        Raises:
            ValueError: the operating system does not support such locks.
        """
        if fd is None:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        self._take, self._release = file_lock(fd)

    def __enter__(self) -> None:
        """Wait for the lock and acquire it."""
        self._take()

    def __exit__(self, *error: object) -> None:
        """Release the lock."""
        self._release()

    def __reduce__(self) -> tuple[Callable[[_Handed], ProcessLock], tuple[_Handed]]:
        """Pass the lock to a process at its start."""
        from multiprocessing.reduction import DupFd  # not available on Windows, which has no such lock either

        return _rebuild_lock, (DupFd(self._fd),)


class _Handed(Protocol):
    """A file descriptor in transit to another process."""

    def detach(self) -> int:
        """Return the descriptor in the receiving process."""


def _rebuild_lock(handed: _Handed) -> ProcessLock:
    return ProcessLock(handed.detach())
