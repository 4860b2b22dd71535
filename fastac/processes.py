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
import sys
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
from types import ModuleType
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
from fastac.memory import line_bytes, line_view, whole_lines

Scalar = TypeVar("Scalar", bound=np.generic)

CLOSE_TIMEOUT_S = 2.0
_ORPHAN_S = 5.0  # that a process has to end in order after its parent has gone

_LOOK_S = 0.5  # who waits looks at the clock at least so often
_MOST_S = 1.0  # what one look can add to a stopwatch


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


class Stopwatch:
    """Measures how long this process has waited for another one.

    It stands still while this very process is stopped (Ctrl-Z, `docker pause`, a debugger): who was not there has seen
    nobody being late. To know that, it must be looked at twice a second or more often.
    """

    def __init__(self) -> None:
        """Begin at 0."""
        self.elapsed_s = 0.0
        self._looked = time.monotonic()

    def look(self) -> float:
        """Return the seconds waited so far."""
        now = time.monotonic()
        self.elapsed_s += min(now - self._looked, _MOST_S)
        self._looked = now
        return self.elapsed_s


def has_news(pipe: Connection, watch: Stopwatch, timeout_s: float) -> bool:
    """Wait until there is something to receive, or `watch` says `timeout_s`; return whether there is.

    Raises:
        OSError: the pipe is broken.
    """
    while not pipe.poll(min(_LOOK_S, max(0.0, timeout_s - watch.elapsed_s))):
        if watch.look() >= timeout_s:
            return pipe.poll(0.0)
    return True


@dataclass(frozen=True, slots=True)
class Child:
    """A started process and this end of its pipe.

    Attributes:
        process: itself.
        pipe: to talk through.
        lifeline: whose end it notices: then it ends too, whatever it is doing.
    """

    process: BaseProcess
    pipe: Connection
    lifeline: Connection

    def exit_code(self) -> int | None:
        """Return the exit code of a process whose pipe is closed: the pipe closes a moment before there is one."""
        self.process.join(CLOSE_TIMEOUT_S)
        return self.process.exitcode

    def tell_end(self) -> str:
        """Return what has become of a process whose pipe is closed, in words.

        Raises:
            ValueError: it was started by a script that trains whenever it is imported.
        """
        code = self.exit_code()
        if code == _UNGUARDED:
            raise ValueError(f"another process cannot import this script: {GUARD}.") from None  # its pipe's end
        return f"died (exit code {code})"


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


def start(context: SpawnContext | ForkServerContext, work: Callable[[Connection], None], sent: bytes = b"") -> Child:
    """Start a process that does `work` with its end of a pipe.

    It is no daemon, as environments may have processes of their own; a lifeline ends it with this process.

    Args:
        context: from `get_context`.
        work: a function of a module, not of the user's script.
        sent: what of the user's goes with it, `pickled`. The process imports the user's script only if something of
            this is defined there: a script without a main guard would train once more.
    """
    ours, theirs = context.Pipe()
    held, lifeline = context.Pipe(duplex=False)
    process = context.Process(target=_live, args=(work, held, theirs), daemon=False)
    with _without_signals(context), suppress_script(_SCRIPT not in sent):
        process.start()
    for end in (theirs, held):
        end.close()  # or this process would hold the pipe of a dead worker open, and wait
    for end in (ours, lifeline):
        atexit.register(end.close)  # before multiprocessing waits for processes that nobody closed
    return Child(process, ours, lifeline)


_SCRIPT = b"__main__"  # the module's name, as it stands in what is pickled
_UNGUARDED = 97  # the exit code of a process that was to import a script and found it training
_script_lock = threading.Lock()


@contextmanager
def suppress_script(is_suppressed: bool) -> Iterator[None]:
    """Start processes that do not import the user's script, whose module is another one meanwhile."""
    if not is_suppressed:
        yield
        return
    with _script_lock:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


def end_where_imported() -> None:
    """End this process if it is only importing the script of the process that started it.

    Called where training begins: a script without a main guard would begin it in every process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        sys.stdout.flush()
        os._exit(_UNGUARDED)


def _live(work: Callable[[Connection], None], lifeline: Connection, pipe: Connection) -> None:
    """Do `work`, but no longer than the parent lives."""
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    work(pipe)


def _end_with_parent(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent
    time.sleep(_ORPHAN_S)
    os._exit(1)


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
        for end in (child.pipe, child.lifeline):
            end.close()
            atexit.unregister(end.close)
    while children:
        process = children.pop().process
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def exit_with_parent(pipe: Connection, take: Callable[[object], None], grace_s: float) -> threading.Event:
    """Let this process end with its parent, whatever it is doing then.

    A thread reads the pipe and hands every message to `take`. When the parent closes the pipe, or is gone,
    the event that is returned is set; `grace_s` later the process ends itself, if it has not ended in order.
    (The lifeline that every process has does the same, but later.)
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
GUARD = "put what it does below `if __name__ == '__main__':`, or move what other processes need to a module of its own"


_NOTEBOOK = (
    "other processes cannot import what a notebook or a console defines: put it in a module, as with %%writefile"
)


class UnsendableError(ValueError):
    """Something of the user's cannot be sent to another process.

    Attributes:
        reason: why, without what to do about it.
    """

    def __init__(self, what: str, reason: str) -> None:
        """Take what the sentence begins with, and why."""
        super().__init__(f"{what} ({reason}).")
        self.reason = reason


def pickled(thing: object, what: str) -> bytes:
    """Return `thing` for another process.

    Raises:
        UnsendableError: it cannot be pickled, or is defined where others cannot import it from; `what` begins the
            sentence and says what to do.
    """
    try:
        sent = pickle.dumps(thing)
    except Exception as error:  # pickling runs foreign code, which may raise anything
        raise UnsendableError(what, f"other processes cannot have it, {type(error).__name__}: {error}") from error
    if _SCRIPT in sent and not _has_script():
        raise UnsendableError(what, _NOTEBOOK)
    return sent


def _has_script() -> bool:
    """Return whether this process runs a script or module, as multiprocessing asks it."""
    main = sys.modules["__main__"]
    return hasattr(main, "__file__") or getattr(main, "__spec__", None) is not None


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
