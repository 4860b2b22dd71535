"""Holds the store where torchrun's agents meet, in a process of its own.

By default one of the agents holds it, and all others end with that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's own hints lack it


@contextmanager
def serving(endpoint: str) -> Iterator[None]:
    """Hold the store at `host:port`.

    Raises:
        ValueError: the endpoint is not valid, or something else listens there.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"the endpoint is {endpoint!r}, expected HOST:PORT, such as 10.0.0.1:29400.")
    try:
        store = TCPStore(host, int(port), None, True, timedelta(seconds=30), wait_for_workers=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"cannot listen at {endpoint} ({reason}): choose another port, or end what has it.") from error
    yield
    del store
