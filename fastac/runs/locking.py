"""Locks of directories, which end with the process that holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(folder: Path, named: Path) -> Iterator[None]:
    """Lock a folder against other sessions, at most until this process ends; without effect where that is impossible.

    Args:
        folder: what is locked.
        named: the path in the message.

    Raises:
        ValueError: another session holds the lock.
    """
    lock = _lock(folder, named)
    try:
        yield
    finally:
        if lock is not None:
            _unlock(lock)


def _lock(folder: Path, named: Path) -> int | None:
    """Return a file descriptor that holds the lock, or None if locking is not possible."""
    try:
        import fcntl

        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # opening a pipe would block
    except (ImportError, AttributeError, OSError):  # Windows; or the folder was removed or replaced
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ValueError(
            f"{named} is open in another session, of this process or another: close that one first."
        ) from error
    except OSError:  # a file system without locks
        pass
    return lock


def _unlock(lock: int) -> None:
    """Release the lock, even if a process forked in the meantime has inherited the file descriptor."""
    import fcntl

    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)
