"""Keeps Python's garbage collector away from modules: they are never garbage, and going over torch's takes 0.2 s."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_later() -> Iterator[None]:
    """Do not collect garbage in the block, which imports modules and returns soon."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """Do not collect garbage in the block, and take all that it leaves for permanent.

    For a process that is fastac's own: whatever is garbage at the end of the block, or at exit, is never collected.
    """
    with collected_later():
        yield
        gc.freeze()
    atexit.register(gc.freeze)  # Python collects once more at exit, which takes 0.4 s with torch's objects
