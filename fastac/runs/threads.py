"""Torch's thread count: one during a run's own work, the caller's setting otherwise."""

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
    """Run each step of a generator method on one thread, and the code between steps with the caller's setting.

    So no setting has to be restored if the caller breaks out of the loop, raises, or interleaves two loops. It costs
    a microsecond per step.
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
