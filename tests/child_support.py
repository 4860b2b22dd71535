"""What the children of `test_processes` do; apart from the tests, so that a child imports no more than it needs."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from importlib import import_module
from multiprocessing.connection import Connection

from fastac import processes
from fastac.processes import Parent


def tell_daemon(parent: Parent) -> None:
    parent.send(multiprocessing.current_process().daemon)


def sleep_on(parent: Parent) -> None:
    parent.send(os.getpid())
    time.sleep(600.0)


def sleep_as_an_orphan(parent: Parent) -> None:
    processes._ORPHAN_S = 0.1
    sleep_on(parent)


def start_and_wait(pipe: Connection) -> None:
    """Be a first process: start a child, tell its process id, and wait to be killed."""
    pipe.send(processes.start("the child", sleep_as_an_orphan, "fastac.processes").receive())
    time.sleep(600.0)


def tell_main(parent: Parent) -> None:
    parent.send(getattr(sys.modules["__main__"], "__file__", None))


def tell_modules(name: str, pipe: Connection) -> None:
    """Import a module, and tell all that are there then."""
    import_module(name)
    pipe.send(set(sys.modules))


def echo(parent: Parent) -> None:
    while True:
        message = parent.receive()
        if isinstance(message, Exception):
            raise message
        parent.send(message)


def exit_with(code: int, parent: Parent) -> None:
    os._exit(code)


def listen_and_sleep(parent: Parent) -> None:
    parent.listen(parent.send, grace_s=0.0)
    time.sleep(600.0)
