"""Locks of directories, which end with the process that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastac.system import lock_directory


@contextmanager
def locked(folder: Path, named: Path) -> Iterator[None]:
    """Lock a folder against other sessions, at most until this process ends; without effect where that is impossible.

    Args:
        folder: what is locked.
        named: the path in the message.

    Raises:
        ValueError: another session holds the lock.
    """
    try:
        unlock = lock_directory(folder)
    except BlockingIOError as error:
        raise ValueError(
            f"{named} is open in another session, of this process or another: close that one first."
        ) from error
    try:
        yield
    finally:
        if unlock is not None:
            unlock()
