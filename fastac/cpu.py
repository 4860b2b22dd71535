"""The number of cores available to this process."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_share = 2**31  # of this process, see `use_cores`


def use_cores(number: int) -> None:
    """Let this process take only so many of the cores, as one of several that share the machine."""
    global _share
    _share = number


def count_cores() -> int:
    """Return the cores available to this process; in a container these may be fewer than the machine's."""
    return min(len(_core_numbers()), _read_quota(), _share)


def _read_quota() -> int:
    """Return a container's CPU quota in cores (docker --cpus), or a huge number if there is no limit."""
    try:
        quota_us, period_us = _QUOTA.read_text().split()
        return max(1, math.ceil(int(quota_us) / int(period_us)))
    except (OSError, ValueError):  # no such file, or "max"
        return 2**31


def count_physical_cores() -> int:
    """Return the physical cores among those available: two threads of one core compute no faster than one."""
    siblings = (Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in _core_numbers())
    try:
        return min(len({path.read_text() for path in siblings}), _read_quota(), _share)
    except OSError:  # not Linux, or a container that hides it
        return count_cores()


def _core_numbers() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
