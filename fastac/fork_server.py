"""Setup of the fork server, from which all child processes of a run are forked.

Importing this module changes the process: it must be the first module that the fork server preloads. Signals sent to
the process group are for the first process only. The server starts with them blocked, so that none can end it with a
traceback before this module is imported; from here on they are ignored.

Garbage is not collected here: all that the server does is to import modules. The forked processes collect it again.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing.forkserver
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _first_process() -> int | None:
    """Return the process that started this one; None if it has ended and another process has adopted this one."""
    parent = os.getppid()
    with suppress(OSError):  # the parent may end at this moment
        if os.getsid(parent) == os.getsid(0):
            return parent
    return None


def _remove_socket(server: int, first: int | None) -> None:
    """Remove the socket and its folder, which remain if the first process was killed.

    While the first process lives it owns the folder, which may contain other files.
    """
    if os.getpid() != server or os.getppid() == first:  # a forked child did not create them
        return
    address = getattr(multiprocessing.forkserver._forkserver, "_forkserver_address", None)  # there is no public name
    if isinstance(address, str):
        with suppress(OSError, ValueError):  # already removed, or not a path
            Path(address).unlink(missing_ok=True)
            Path(address).parent.rmdir()


def _tell_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Report an error in forking a process, unless its cause is that the first process has ended."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, traceback)


gc.disable()
for _number in _SIGNALS:
    signal.signal(_number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
sys.excepthook = _tell_error
atexit.register(_remove_socket, os.getpid(), _first_process())
