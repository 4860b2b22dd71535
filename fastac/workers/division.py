"""Which shards each host and each worker has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


def divide_shards(num_shards: int, workers: int) -> list[range]:
    """Return which shards each worker has: numbers that follow each other, as evenly as possible."""
    edges = [num_shards * worker // workers for worker in range(workers + 1)]
    return [range(begin, end) for begin, end in pairwise(edges)]


@dataclass(frozen=True, slots=True)
class Division:
    """A run's shards as one of its hosts sees them.

    Attributes:
        hosts: the shards of each host.
        host: the number of this one.
        workers: the shards of each of this host's workers.
    """

    hosts: tuple[range, ...]
    host: int
    workers: tuple[range, ...]

    @classmethod
    def divide(cls, num_shards: int, workers: int, hosts: int = 1, host: int = 0) -> Division:
        """Divide S shards among the hosts, and those of this host among its workers, at most one each."""
        parts = divide_shards(num_shards, hosts)
        own = parts[host]
        each = divide_shards(len(own), min(workers, len(own)))
        return cls(tuple(parts), host, tuple(own[part.start : part.stop] for part in each))

    @property
    def num_shards(self) -> int:
        """S, of all hosts."""
        return self.hosts[-1].stop

    @property
    def own(self) -> range:
        """The shards of this host."""
        return self.hosts[self.host]
