"""What the children of `test_processes` do; apart from the tests, so that a child imports no more than it needs."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time

from fastac.processes import Parent


def tell_daemon(parent: Parent) -> None:
    parent.send(multiprocessing.current_process().daemon)


def sleep_on(parent: Parent) -> None:
    parent.send(os.getpid())
    time.sleep(600.0)


def tell_main(parent: Parent) -> None:
    parent.send(getattr(sys.modules["__main__"], "__file__", None))


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
