"""How one process waits for what another one writes into shared memory.

Waiting is spinning at first: an exchange between running workers costs a few microseconds, where a lock or a pipe of
the operating system costs fifty.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from fastac.processes import Stopwatch

# Looks at the counters before the core is offered to somebody else: about 50 us.
_SPINS = 400
_WATCH_S = 0.02  # between looks at whether the others are alive

_lock = threading.Lock()


def fence() -> None:
    """Let other cores see what was written before in that order; x86 does so by itself. Costs 0.1 us."""
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
            os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)
        else:
            waited_s = now - began
            time.sleep(min(0.001, waited_s / 20.0) if waited_s < 1.0 else min(0.05, waited_s / 100.0))
