"""How one process waits until another one has written into shared memory.

A wait begins by spinning: an exchange between running workers then costs a few microseconds. A lock or a pipe of the
operating system would cost about 50 us.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fastac.processes import Stopwatch
from fastac.system import yield_core

# Checks of the condition before the core is yielded to another process: about 50 us.
_SPINS = 400
_WATCH_S = 0.02  # time between checks that the others are alive

_lock = threading.Lock()


def fence() -> None:
    """Memory fence: other cores see earlier writes before what this one reads or writes later. Costs 0.1 us.

    The locks matter on x86 too, which may read before an earlier write is visible.
    """
    with _lock:
        pass
    with _lock:
        pass


def wait_until(is_over: Callable[[], bool], watch: Callable[[float], None]) -> None:
    """Wait: first spin, then yield the core, then sleep for longer and longer.

    Sleeps are at most 1 ms in the first second. After that they are 1 % of the time waited, at most 50 ms, so a waiting
    worker costs next to nothing.
    """
    for _ in range(_SPINS):
        if is_over():
            return
    waited, began = Stopwatch(), time.perf_counter()
    watched = began
    while not is_over():
        now = time.perf_counter()
        if now - watched > _WATCH_S:
            watch(waited.look())
            watched = now
        if now - began < 0.002:
            yield_core()
        else:
            waited_s = now - began
            time.sleep(min(0.001, waited_s / 20.0) if waited_s < 1.0 else min(0.05, waited_s / 100.0))
