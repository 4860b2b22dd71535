"""fastac hosts: the commands that train on several machines."""

from __future__ import annotations

from collections.abc import Sequence


def hosts(words: Sequence[str]) -> int:
    """Run `fastac hosts`."""
    import threading

    from fastac.tools.rendezvous import serve

    assert words[0] == "--serve"
    with serve(words[1]):
        threading.Event().wait()
    return 0
