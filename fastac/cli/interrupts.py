"""SIGINT and SIGTERM while a command starts or ends; a training run handles them itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fastac.torchrun import is_launched


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived outside of training, while starting or evaluating."""


def name_of(error: BaseException) -> str:
    """Return a word for the interruption."""
    return "terminated" if isinstance(error, Terminated) else "interrupted"


@contextmanager
def hearing_sigterm() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM, like KeyboardInterrupt at SIGINT, if SIGTERM would kill the process otherwise.

    Under torchrun it shall: see `fastac.runs.signals`.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    is_ours = (
        not is_launched()
        and threading.current_thread() is threading.main_thread()
        and (signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    )
    if is_ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
