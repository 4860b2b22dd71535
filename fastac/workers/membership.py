"""Who is there: torch's store, this host's address, and signs of life.

A collective of torch.distributed notices a host that is gone at its own time-out, which has to be long: a host may take
minutes until it is ready for the next exchange. So every host gives a sign of life in short intervals, in a thread of
its own, and whoever misses one of another host's ends its process.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from fastac.contract import WorkerFailure
from fastac.system import interface_of
from fastac.torchrun import Launch

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # torch's own hints lack them

log = logging.getLogger("fastac")

_JOIN_S = 300.0  # until all hosts have imported fastac, which may compile its kernels first
_STARTING_S = 60.0  # a host without a sign of life for so long is lost while it starts
_LEAVE_S = 1.0
_TIMES = 6  # signs of life within the time after which a host is lost


def open_store(launch: Launch, limit_s: float = _JOIN_S) -> TCPStore:
    """Open the key-value store of all hosts, which the first one holds; wait for it at most `limit_s` seconds.

    Raises:
        WorkerFailure: nobody listens at its address.
    """
    try:
        return _connect(launch, limit_s, is_holder=launch.rank == 0)
    except (RuntimeError, OSError) as error:
        raise WorkerFailure(
            f"nobody answers at {launch.address}:{launch.port}, where the first host should listen: check its address, "
            "and that its firewall lets hosts of this run through"
        ) from error


def _connect(launch: Launch, limit_s: float, is_holder: bool = False) -> TCPStore:
    """Connect to the store, or hold it."""
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's own hints lack it
    except ImportError as error:
        raise ValueError("this build of torch has no torch.distributed: install one that has it.") from error
    limit = timedelta(seconds=limit_s)
    return TCPStore(launch.address, launch.port, None, is_holder, limit, wait_for_workers=False)


def choose_interface(store: Store, launch: Launch) -> None:
    """Let gloo use the network interface by which the hosts reach each other, unless GLOO_SOCKET_IFNAME is set.

    By default it takes the one that the host's own name leads to, which is often the loopback interface.
    """
    if launch.rank > 0:
        address = _own_address(launch.address)
        store.set(f"address/{launch.rank}", address)
    else:
        address = _own_address(store.get("address/1").decode())
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        name = interface_of(address)
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _own_address(other: str) -> str:
    """Return this host's address towards another one."""
    family, kind, _, _, where = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)  # sends nothing
        return str(probe.getsockname()[0])


class Membership:
    """Gives signs of life of this host, and ends this process when another one gives none.

    One thread talks to the store, and may wait for an answer that never comes; another one looks at the clock.
    """

    def __init__(self, launch: Launch, store: TCPStore, silent_s: float) -> None:
        """Begin; a host without a sign of life for `silent_s` seconds is lost, and for longer until `tighten`."""
        self._ended = threading.Event()
        # A process that loads libraries and builds environments may not get to it for a while.
        self._rank, self._later_s, self._silent_s = launch.rank, silent_s, max(silent_s, _STARTING_S)
        self._every_s = silent_s / _TIMES
        self._threads: list[threading.Thread] = []
        if launch.size == 1:
            return
        self._keys = [f"alive/{host}" for host in range(launch.size)]
        store.set(self._keys[self._rank], "0")
        store.wait(self._keys, timedelta(seconds=_JOIN_S))
        # A connection of its own: one that waits for an order would keep this one waiting.
        self._store = _connect(launch, _JOIN_S)
        self._seen = [monotonic()] * launch.size  # when each host has given its latest sign of life
        works = self._talk, self._watch
        self._threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def tighten(self) -> None:
        """Expect the others' signs of life in time from now on."""
        self._silent_s = self._later_s

    def _talk(self) -> None:
        """Give signs of life, and note those of the others."""
        count, latest = 0, [b""] * len(self._keys)
        while not self._ended.wait(self._every_s):
            count += 1
            try:
                self._store.set(self._keys[self._rank], str(count))
                found = self._store.multi_get(self._keys)
            except RuntimeError:
                self._end(0)
                return
            now = monotonic()
            self._seen = [now if a != b else seen for a, b, seen in zip(found, latest, self._seen, strict=True)]
            latest = found

    def _watch(self) -> None:
        """End this process when the latest sign of another host is too old."""
        looked = monotonic()
        while not self._ended.wait(self._every_s):
            now = monotonic()
            was_away, looked = now - looked > self._silent_s, now
            if was_away:  # this process was stopped, so it cannot know
                self._seen = [now] * len(self._keys)
            old = [host for host, seen in enumerate(self._seen) if now - seen > self._silent_s]
            if old:
                # If this host's own signs do not arrive either, it is the first host that cannot be reached.
                self._end(0 if self._rank in old else old[0])
                return

    def _end(self, lost: int) -> None:
        """End the process at once: its main thread may wait in a collective that nothing else ends."""
        if self._ended.is_set():
            return
        log.error(
            "host %d has given no sign of life for %g s, or has ended: this process ends, and the run goes on from its "
            "last checkpoint",
            lost,
            self._silent_s,
        )
        sys.stderr.flush()
        os._exit(1)

    def close(self) -> None:
        """Give no more signs of life, and watch nobody; safe to call twice."""
        self._ended.set()
        for thread in self._threads:  # one that is inside of torch would abort the interpreter's exit
            thread.join(_LEAVE_S)
