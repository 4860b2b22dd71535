"""Asking runs to stop: SIGINT and SIGTERM noted in place of dying."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

log = logging.getLogger("fastac")


class Stop:
    """Which signal has asked to stop, if any."""

    signal: signal.Signals | None = None


_active: list[Stop] = []  # of runs in progress, which may take turns
_put_back: dict[signal.Signals, Callable[[], object]] = {}  # restores the handlers that the first of them found
_let_die: dict[signal.Signals, Callable[[], object]] = {}  # what a second signal is to find


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
            before = signal.signal(number, _note)
            # Shells start background jobs with SIGINT ignored; a second one is meant all the same.
            second = signal.default_int_handler if before is signal.SIG_IGN else before
            _put_back[number] = partial(signal.signal, number, before)
            _let_die[number] = partial(signal.signal, number, second)
    _active.append(stop)
    try:
        yield stop
    finally:
        _active.remove(stop)
        if not _active:
            for put_back in _put_back.values():
                put_back()


def _note(number: int, frame: FrameType | None) -> None:
    for stop in _active:
        stop.signal = signal.Signals(number)
    log.info("stopping after the update in progress; once more stops at once")
    _let_die[signal.Signals(number)]()
