"""Takes from Python what Windows or macOS do not have; it is imported first by every process with this on its path."""

import multiprocessing.reduction
import os
import signal
import sys

for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "sched_setaffinity", "sched_yield", "setsid", "getsid", "O_DIRECTORY", "O_NOFOLLOW"):
    vars(os).pop(name, None)
vars(signal).pop("pthread_sigmask", None)
multiprocessing.reduction.HAVE_SEND_HANDLE = False  # so there is no fork server
_open = os.open


def _open_no_directory(path, flags, *rest, **more):
    """Open a file; Windows refuses a directory."""
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return _open(path, flags, *rest, **more)


os.open = _open_no_directory
