"""Asking runs to stop: SIGINT and SIGTERM noted in place of dying."""

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


_active: list[Stop] = []  # of runs in progress, which may take turns
_before: dict[signal.Signals, object] = {}  # the handlers that the first of them found


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM in place of dying; a second one dies. Outside the main thread, nothing.

    A signal is meant for all runs in progress. The handlers are put back when the last of them leaves.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    if not _active:
        for number in (signal.SIGINT, signal.SIGTERM):
            _before[number] = signal.signal(number, _note)
    _active.append(stop)
    try:
        yield stop
    finally:
        _active.remove(stop)
        if not _active:
            for number, handler in _before.items():
                signal.signal(number, handler)  # type: ignore[arg-type] # it is what `signal` returned


def _note(number: int, frame: FrameType | None) -> None:
    for stop in _active:
        stop.signal = signal.Signals(number)
    log.info("stopping after the update in progress; once more stops at once")
    second = _before[signal.Signals(number)]
    # Shells start background jobs with SIGINT ignored; a second one is meant all the same.
    signal.signal(number, signal.default_int_handler if second is signal.SIG_IGN else second)  # type: ignore[arg-type]
