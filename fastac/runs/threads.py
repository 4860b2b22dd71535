"""Torch's number of threads: one within a run's own work, and the caller's own count everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import wraps
from typing import TypeVar

from fastac.build import single_thread

_Owner = TypeVar("_Owner")
_Item = TypeVar("_Item")


def steps_on_one_thread(
    method: Callable[[_Owner], Generator[_Item, None, None]],
) -> Callable[[_Owner], Iterator[_Item]]:
    """Let a generator method do each of its steps on one thread, and what lies between them as its caller likes.

    So nothing is left to restore where a caller breaks out of the loop, raises, or has two of them in turn. It costs
    a microsecond a step.
    """

    @wraps(method)
    def steps(owner: _Owner) -> Iterator[_Item]:
        items = method(owner)
        try:
            while True:
                with single_thread():
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item
        finally:
            with single_thread():
                items.close()

    return steps
