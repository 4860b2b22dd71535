"""Asking a run to stop: SIGINT and SIGTERM noted in place of dying."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("fastac")


class Stop:
    """Which signal has asked to stop, if any."""

    signal: signal.Signals | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM in place of dying; a second one dies. Outside the main thread, nothing."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        log.info("stopping after the update in progress; once more stops at once")
        second = before[stop.signal]
        # Shells start background jobs with SIGINT ignored; a second one is meant all the same.
        signal.signal(number, signal.default_int_handler if second is signal.SIG_IGN else second)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
