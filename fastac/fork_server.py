"""What the fork server does first, from which all processes beside a run are forked.

Importing this module changes the process: it is named first among the modules that the fork server imports.
Signals that reach a whole group are the first process's alone. The server is born with them blocked, so that none
can end it with a traceback before it comes here; from here on they are ignored.
"""

from __future__ import annotations

import atexit
import multiprocessing.forkserver
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _first_process() -> int | None:
    """Which process has started this one; None where it has gone, and one of another session has adopted this."""
    parent = os.getppid()
    with suppress(OSError):  # it goes just now
        if os.getsid(parent) == os.getsid(0):
            return parent
    return None


def _remove_socket(server: int, first: int | None) -> None:
    """Remove the socket and its folder, which stay where the first process was killed.

    While that lives the folder is its own, and other things may lie in it.
    """
    if os.getpid() != server or os.getppid() == first:  # a process that was forked has not made them
        return
    address = getattr(multiprocessing.forkserver._forkserver, "_forkserver_address", None)  # no public name
    if isinstance(address, str):
        with suppress(OSError, ValueError):  # gone, or no path
            Path(address).unlink(missing_ok=True)
            Path(address).parent.rmdir()


def _tell_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Tell what went wrong while a process was being forked, unless it was that the first process has gone."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, traceback)


for _number in _SIGNALS:
    signal.signal(_number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
sys.excepthook = _tell_error
atexit.register(_remove_socket, os.getpid(), _first_process())
