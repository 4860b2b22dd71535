"""Graceful stop of runs: SIGINT and SIGTERM are recorded instead of ending the process."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from fastac.torchrun import is_launched

log = logging.getLogger("fastac")


class Stop:
    """Records which signal asked to stop, if any."""

    signal: signal.Signals | None = None


_active: list[Stop] = []  # of runs in progress, which may be nested or interleaved
_put_back: dict[signal.Signals, Callable[[], object]] = {}  # restore the original handlers, from before the first run
_let_die: dict[signal.Signals, Callable[[], object]] = {}  # install the handlers for a second signal


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Record SIGINT and SIGTERM instead of dying; a second signal kills. Does nothing outside the main thread.

    SIGTERM of torchrun is no user's: it starts the processes again, so they die by it at once.

    A signal applies to all runs in progress. The handlers are restored when the last run leaves.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    if not _active:
        for number in (signal.SIGINT,) if is_launched() else (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, _note)
            # Shells start background jobs with SIGINT ignored; a second SIGINT must still work.
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
