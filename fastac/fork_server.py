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
from contextlib import suppress
from pathlib import Path

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _remove_socket(server: int) -> None:
    """Remove the socket and its folder, which stay where the first process was killed; else it has done so."""
    address = getattr(multiprocessing.forkserver._forkserver, "_forkserver_address", None)  # no public name
    if os.getpid() == server and isinstance(address, str):  # a process that was forked has not made them
        with suppress(OSError, ValueError):  # gone, or no path
            Path(address).unlink(missing_ok=True)
            Path(address).parent.rmdir()


for _number in _SIGNALS:
    signal.signal(_number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
atexit.register(_remove_socket, os.getpid())
