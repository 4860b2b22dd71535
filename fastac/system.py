"""What differs between operating systems, with what is done where one lacks it.

Everything here works with plain Python on Windows and macOS, too; only then some of it is worth less: processes start
more slowly, numbers that the system does not tell are 0 or None. The rest of the package uses nothing that only some
systems have.

Modules are imported where they are used, since the command line imports this one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

# Linux's files about the machine and this process.
_STATUS = Path("/proc/self/status")
_CPU_INFO = Path("/proc/cpuinfo")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPUS = Path("/sys/devices/system/cpu")

_PR_SET_PDEATHSIG = 1
_SIOCGIFADDR = 0x8915

# --- cores ------------------------------------------------------------------------------------------


def core_numbers() -> list[int]:
    """Return the cores that this process may use; all where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pinnable_cores() -> list[int]:
    """Return the cores that a process can be tied to; none where the system cannot do that."""
    return core_numbers() if hasattr(os, "sched_setaffinity") else []


def keep_to_core(process: int, core: int) -> None:
    """Let a process run on one of the `pinnable_cores`."""
    os.sched_setaffinity(process, {core})


def read_cpu_quota() -> tuple[int, int] | None:
    """Return a container's CPU quota and its period in us (docker --cpus), or None if there is no limit."""
    try:
        quota_us, period_us = _CPU_QUOTA.read_text().split()
        return int(quota_us), int(period_us)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def read_siblings(cores: Sequence[int]) -> set[str] | None:
    """Return what names the physical cores behind some cores, or None where the system does not tell."""
    try:
        return {(_CPUS / f"cpu{core}/topology/thread_siblings_list").read_text() for core in cores}
    except OSError:  # not Linux, or a container that hides it
        return None


def cpu_model() -> str:
    """Return the processor's name as reported by the system."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    import platform

    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# Let another process have the core; costs 1 us if none wants it.
yield_core: Callable[[], None] = getattr(os, "sched_yield", partial(time.sleep, 0.0))


# --- memory and files -------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Return this process's resident memory, or 0 where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:  # not Linux
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def peak_resident_bytes() -> int | None:
    """Return the most resident memory that this process has had, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def sync_directory(path: Path) -> None:
    """Wait until the directory's entries are on disk, so that a rename in it survives a power cut.

    Windows opens no directory, and keeps the order of its renames by itself.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if hasattr(os, "O_DIRECTORY"):
            raise
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_directory(path: Path) -> Callable[[], None] | None:
    """Lock a directory, at most until this process ends; return what unlocks it, or None where there is no lock.

    Raises:
        BlockingIOError: this process or another one holds the lock.
    """
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # opening a pipe would block
    except (ImportError, AttributeError, OSError):  # Windows; or the directory was removed or replaced
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system without locks
        pass

    def unlock() -> None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # even if a process forked meanwhile has inherited the handle
        os.close(handle)

    return unlock


def file_lock(handle: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what takes and what releases the lock of an open file; the system releases it with its holder.

    Raises:
        ValueError: the operating system has no such locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise ValueError("this operating system has no lock that a killed process releases: train without.") from error
    return partial(fcntl.lockf, handle, fcntl.LOCK_EX), partial(fcntl.lockf, handle, fcntl.LOCK_UN)


# --- processes --------------------------------------------------------------------------------------


def start_context(preload: Sequence[str]) -> BaseContext:
    """Return the context that starts processes: a fork server that has imported `preload`, or else fresh processes.

    Neither ever forks this process: its threads (torch's, CUDA's) make a fork unsafe.
    """
    import multiprocessing

    if not has_fork_server():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def has_fork_server() -> bool:
    """Return whether processes can be forked from a server; Windows starts each anew."""
    import multiprocessing

    return "forkserver" in multiprocessing.get_all_start_methods()


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM, so that a fork server started meanwhile inherits the blocked mask.

    Without a fork server there is nothing to protect.
    """
    if not has_fork_server():
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # starting it later would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_terminal() -> None:
    """Take this process out of the terminal's group, which Ctrl-C is sent to; Windows has no such groups."""
    if hasattr(os, "setsid"):
        os.setsid()


def die_with_parent() -> None:
    """Let the system kill this process when its parent dies; only Linux does that."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died just before
        os._exit(1)


# --- networks ---------------------------------------------------------------------------------------


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with an IPv4 address, or None if it is not found; Linux only."""
    if sys.platform != "linux" or ":" in address:
        return None
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None
