"""What the process of a test's environment does; apart from it, since it is spawned and imports what is in its file."""

from __future__ import annotations


def simulate(pipe: object) -> None:
    while (number := pipe.recv()) is not None:
        pipe.send(number)
