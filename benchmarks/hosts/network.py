"""Two network namespaces, joined by a cable that can be cut and made slow."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("fastac-a", "fastac-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_DEVICES = ("fastac0", "fastac1")


def why_not() -> str | None:
    """Return why this machine cannot have namespaces, or None if it can."""
    if shutil.which("ip") is None:
        return "the command ip is missing (package iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    made = subprocess.run(["ip", "netns", "add", "fastac-probe"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"this machine has no network namespaces ({made.stderr.strip()})"
    _ip("netns", "del", "fastac-probe")
    return None


@contextmanager
def two_hosts() -> Iterator[None]:
    """Make the two namespaces, and remove them again."""
    _remove()
    try:
        for name in NAMES:
            _ip("netns", "add", name)
        _ip("link", "add", _DEVICES[0], "type", "veth", "peer", "name", _DEVICES[1])
        for name, device, address in zip(NAMES, _DEVICES, ADDRESSES, strict=True):
            _ip("link", "set", device, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            for each in ("lo", device):
                _ip("-n", name, "link", "set", each, "up")
        yield
    finally:
        _remove()


def inside(host: int, command: list[str]) -> list[str]:
    """Return a command that runs in a host's namespace."""
    return ["ip", "netns", "exec", NAMES[host], *command]


def cut(seconds: float) -> None:
    """Cut the cable for some seconds."""
    _ip("-n", NAMES[0], "link", "set", _DEVICES[0], "down")
    time.sleep(seconds)
    _ip("-n", NAMES[0], "link", "set", _DEVICES[0], "up")


@contextmanager
def slowed(rate: str | None) -> Iterator[None]:
    """Limit the rate of the cable, such as "1gbit", in both directions; None leaves it."""
    shaped = ("tbf", "rate", rate or "", "burst", "256kb", "latency", "50ms")
    for name, device in zip(NAMES, _DEVICES, strict=True):
        if rate is not None:
            subprocess.run(["tc", "-n", name, "qdisc", "replace", "dev", device, "root", *shaped], check=True)
    yield
    for name, device in zip(NAMES, _DEVICES, strict=True):
        if rate is not None:
            subprocess.run(["tc", "-n", name, "qdisc", "del", "dev", device, "root"], check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
