"""Who is there: torch's store, this host's address, and signs of life.

A collective of torch.distributed notices a host that is gone at its own time-out, which has to be long: a host may take
minutes until it is ready for the next exchange. So every host gives a sign of life in short intervals, in a thread of
its own, and whoever misses one of another host's ends its process.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
import threading
from datetime import timedelta
from time import monotonic

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # torch's own hints lack them

from fastac.contract import WorkerFailure
from fastac.torchrun import Launch

log = logging.getLogger("fastac")

_JOIN_S = 60.0  # until the process of the first host listens: it imports torch first
_TIMES = 6  # signs of life within the time after which a host is lost


def open_store(launch: Launch) -> TCPStore:
    """Open the key-value store of all hosts, which the first one holds.

    Raises:
        WorkerFailure: nobody listens at its address.
    """
    is_holder = launch.rank == 0 and not launch.uses_agent_store
    limit = timedelta(seconds=_JOIN_S)
    try:
        return TCPStore(launch.address, launch.port, None, is_holder, limit, wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        raise WorkerFailure(
            f"nobody answers at {launch.address}:{launch.port}, where the first host should listen: check its address, "
            "and that its firewall lets hosts of this run through"
        ) from error


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
        name = _interface_of(address)
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _own_address(other: str) -> str:
    """Return this host's address towards another one."""
    family, kind, _, _, where = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)  # sends nothing
        return str(probe.getsockname()[0])


def _interface_of(address: str) -> str | None:
    """Return the name of the interface with an IPv4 address, or None if it is not found."""
    if sys.platform != "linux" or ":" in address:
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


class Membership:
    """Gives signs of life of this host, and ends this process when another one gives none."""

    def __init__(self, launch: Launch, store: TCPStore, silent_s: float) -> None:
        """Begin; a host without a sign of life for `silent_s` seconds is lost."""
        self._ended = threading.Event()
        if launch.size == 1:
            return
        self._rank, self._silent_s = launch.rank, silent_s
        self._keys = [f"alive/{host}" for host in range(launch.size)]
        store.set(self._keys[self._rank], "0")
        store.wait(self._keys, timedelta(seconds=_JOIN_S))
        # A connection of its own: one that waits for an order would keep this one waiting.
        limit = timedelta(seconds=silent_s)
        self._store = TCPStore(launch.address, launch.port, None, False, limit, wait_for_workers=False)
        threading.Thread(target=self._watch, name="membership", daemon=True).start()

    def _watch(self) -> None:
        count, every_s = 0, self._silent_s / _TIMES
        latest: list[bytes] = []
        seen = [monotonic()] * len(self._keys)
        looked = monotonic()
        while not self._ended.wait(every_s):
            count += 1
            try:
                self._store.set(self._keys[self._rank], str(count))
                found = self._store.multi_get(self._keys)
            except RuntimeError:
                self._end("host 0 is gone, or cannot be reached")
                return
            now = monotonic()
            was_away = now - looked > self._silent_s  # this process was stopped, so it cannot know
            looked = now
            for host, sign in enumerate(found):
                if was_away or not latest or sign != latest[host]:
                    seen[host] = now
            latest = found
            lost = [host for host, when in enumerate(seen) if now - when > self._silent_s]
            if lost:
                self._end(f"host {lost[0]} has given no sign of life for {self._silent_s:g} s")
                return

    def _end(self, what: str) -> None:
        """End the process at once: its main thread may wait in a collective that nothing else ends."""
        if self._ended.is_set():
            return
        log.error("%s: this process ends, and the run goes on from its last checkpoint", what)
        sys.stderr.flush()
        os._exit(1)

    def close(self) -> None:
        """Give no more signs of life, and watch nobody; safe to call twice."""
        self._ended.set()
