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
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

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
        of_env: whether an environment is to blame.
    """

    message: str
    traceback: str
    of_env: bool


class SharedArray(Generic[Scalar]):
    """An array in anonymous shared memory; it can be handed to a process that is being started."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Scalar]) -> None:
        """Allocate zeros."""
        self._shape, self._dtype = shape, dtype
        self._memory = RawArray("B", prod(shape) * dtype.itemsize)

    def view(self) -> NDArray[Scalar]:
        """Return the array over the shared memory, in whichever process this is."""
        return np.frombuffer(self._memory, dtype=self._dtype).reshape(self._shape)


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
    context.set_forkserver_preload([preload])
    return context


def start(context: SpawnContext | ForkServerContext, work: Callable[[Connection], None]) -> Child:
    """Start a process that does `work` with its end of a pipe."""
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # or this process would hold the pipe of a dead worker open, and wait
    atexit.register(ours.close)  # before multiprocessing waits for processes that nobody closed
    return Child(process, ours)


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


def ignore_signals() -> None:
    """Leave SIGINT and SIGTERM, which may reach a whole group of processes, to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def unpickled(sent: bytes) -> object:
    """Return what `pickled` was given, in the process that it was sent to."""
    thing: object = pickle.loads(sent)
    return thing


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
