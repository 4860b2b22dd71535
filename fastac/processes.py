"""Processes beside this one: how they start, what memory they share, and what they say when they fail.

A process is never forked from this one, whose threads (torch's, CUDA's) a fork would break, and shared
memory has no name, so it goes with its last process even if that is killed.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import c_ubyte
from dataclasses import dataclass
from functools import partial
from math import prod
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
from fastac.memory import line_bytes, line_view, whole_lines

Scalar = TypeVar("Scalar", bound=np.generic)

START_TIMEOUT_S = 120.0  # a process imports torch and the environment's package, perhaps from a cold disk
CLOSE_TIMEOUT_S = 2.0


class WorkerTraceback(Exception):
    """The traceback of another process, as text; the cause of the failure raised here."""


@dataclass(frozen=True, slots=True)
class Failed:
    """What a process sends when it failed.

    Attributes:
        message: one sentence.
        traceback: its traceback as text.
        of: what is to blame, an environment, numbers that are not finite, or anything else.
    """

    message: str
    traceback: str
    of: Literal["env", "numbers", "other"] = "other"


def to_failed(error: Exception) -> Failed:
    """Return what a process sends of its exception; called where that is handled."""
    text = traceback.format_exc()
    if isinstance(error, EnvFailure):
        return Failed(str(error), text, "env")
    if isinstance(error, NonFiniteError):
        return Failed(str(error), text, "numbers")
    return Failed(f"raised {type(error).__name__}: {error}", text)


def to_error(who: str, failed: Failed) -> EnvFailure | NonFiniteError | WorkerFailure:
    """Return the exception as this process raises it; its cause is the other's traceback."""
    kinds: dict[str, type[EnvFailure | NonFiniteError | WorkerFailure]] = {
        "env": EnvFailure,
        "numbers": NonFiniteError,
        "other": WorkerFailure,
    }
    error = kinds[failed.of](f"{who}: {failed.message}")
    error.__cause__ = WorkerTraceback(failed.traceback)
    return error


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


@dataclass(frozen=True, slots=True)
class Child:
    """A started process and this end of its pipe."""

    process: BaseProcess
    pipe: Connection

    def exit_code(self) -> int | None:
        """Return the exit code of a process whose pipe is closed: the pipe closes a moment before there is one."""
        self.process.join(CLOSE_TIMEOUT_S)
        return self.process.exitcode


def get_context(preload: str) -> SpawnContext | ForkServerContext:
    """Return a context that never forks this process.

    A fork server imports the module `preload`, and torch with it, once; each process then starts in
    milliseconds. Windows has only spawn.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastac.fork_server", preload])
    return context


def start(
    context: SpawnContext | ForkServerContext, work: Callable[[Connection], None], has_children: bool = False
) -> Child:
    """Start a process that does `work` with its end of a pipe; one that has children is no daemon, which may not."""
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=not has_children)
    with _without_signals(context):
        process.start()
    theirs.close()  # or this process would hold the pipe of a dead worker open, and wait
    atexit.register(ours.close)  # before multiprocessing waits for processes that nobody closed
    return Child(process, ours)


@contextmanager
def _without_signals(context: SpawnContext | ForkServerContext) -> Iterator[None]:
    """Keep SIGINT and SIGTERM for later, so that a fork server that is being started inherits that they are blocked.

    `fastac.fork_server` unblocks them there. By itself it would import for seconds, deaf to nothing.
    """
    if not isinstance(context, ForkServerContext):
        yield
        return
    resource_tracker.ensure_running()  # it unblocks them when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def close(children: list[Child], timeout_s: float = CLOSE_TIMEOUT_S) -> None:
    """Close the pipes, at which the processes end by themselves; kill those that do not; empty the list."""
    for child in children:
        child.pipe.close()
        atexit.unregister(child.pipe.close)
    while children:
        process = children.pop().process
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def follow(pipe: Connection, take: Callable[[object], None], grace_s: float) -> threading.Event:
    """Let this process end with its parent, whatever it is doing then.

    A thread reads the pipe and hands every message to `take`. When the parent closes the pipe, or is gone,
    the event that is returned is set; `grace_s` later the process ends itself, if it has not ended in order.
    """
    has_left = threading.Event()

    def read() -> None:
        with suppress(EOFError, OSError):
            while True:
                take(pipe.recv())
        has_left.set()
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return has_left


def ignore_signals() -> None:
    """Leave SIGINT and SIGTERM, which may reach a whole group of processes, to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def unpickled(sent: bytes) -> object:
    """Return what `pickled` was given, in the process that it was sent to."""
    thing: object = pickle.loads(sent)
    return thing


# What is told to those whose functions cannot be sent, and to those whose script starts processes when imported.
UNSENDABLE = (
    "the env and encoder functions are sent to other processes, so they must be defined at the top level of a module"
)
GUARD = "a script that trains in several processes must do so below `if __name__ == '__main__':`"


def pickled(thing: object, what: str) -> bytes:
    """Return `thing` for another process.

    Raises:
        ValueError: it cannot be pickled; `what` begins the sentence and says what to do.
    """
    try:
        return pickle.dumps(thing)
    except Exception as error:  # pickling runs foreign code, which may raise anything
        raise ValueError(f"{what} ({type(error).__name__}: {error}).") from error


_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def count_cores() -> int:
    """Return the cores that this process may use, which in a container are fewer than the machine has."""
    return min(len(_core_numbers()), _read_quota())


def _read_quota() -> int:
    """Return how many cores' time a container may use (docker --cpus), a huge number where that is not limited."""
    try:
        quota_us, period_us = _QUOTA.read_text().split()
        return max(1, math.ceil(int(quota_us) / int(period_us)))
    except (OSError, ValueError):  # no such file, or "max"
        return 2**31


def count_physical_cores() -> int:
    """Return how many of those are cores of their own: two threads of one core compute no faster than one."""
    siblings = (Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in _core_numbers())
    try:
        return min(len({path.read_text() for path in siblings}), _read_quota())
    except OSError:  # not Linux, or a container that hides it
        return count_cores()


def _core_numbers() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
