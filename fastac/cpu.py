"""The number of cores available to this process."""

from __future__ import annotations

import math

from fastac.system import core_numbers, read_cpu_quota, read_siblings

_share = 2**31  # of this process, see `use_cores`


def use_cores(number: int) -> None:
    """Let this process take only so many of the cores, as one of several that share the machine."""
    global _share
    _share = number


def count_cores() -> int:
    """Return the cores available to this process; in a container these may be fewer than the machine's."""
    return _limit(len(core_numbers()))


def count_physical_cores() -> int:
    """Return the physical cores among those available: two threads of one core compute no faster than one."""
    siblings = read_siblings(core_numbers())
    return count_cores() if siblings is None else _limit(len(siblings))


def _limit(cores: int) -> int:
    """Return a number of cores, or a container's quota or this process's share if that is less."""
    quota = read_cpu_quota()
    return min(cores, _share) if quota is None else min(cores, _share, max(1, math.ceil(quota[0] / quota[1])))
