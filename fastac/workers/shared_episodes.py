"""Transfer of finished episodes from the workers to the first process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastac.contract import Episodes
from fastac.shared_memory import SharedArray
from fastac.workers.extras import ExtrasReader, ExtrasWriter, SharedExtras

_NONE = np.empty((2, 0))


@dataclass(frozen=True, slots=True)
class SharedEpisodes:
    """Memory shared by K workers; each writes its own row. The number of episodes is counted elsewhere.

    Attributes:
        rings: `[K, 2, E]`, ring buffers of returns and lengths; new episodes overwrite the oldest.
        extras: numbers that the episodes gave in `info`.
    """

    rings: SharedArray[np.float64]
    extras: SharedExtras

    @classmethod
    def allocate(cls, workers: int, room: int) -> SharedEpisodes:
        """Allocate for K = `workers`, with room for E = `room` unread episodes of each."""
        return cls(SharedArray((workers, 2, room), np.dtype(np.float64), apart=True), SharedExtras.allocate(workers))


class EpisodesWriter:
    """Writes a worker's row."""

    def __init__(self, shared: SharedEpisodes, worker: int) -> None:
        """Continue the row of `worker`; a lost worker may have begun it."""
        self._ring, self._extras = shared.rings.view()[worker], ExtrasWriter(shared.extras, worker)

    def put(self, episodes: Episodes, before: int) -> None:
        """Add episodes; `before` is this worker's count so far. The caller must increase the count afterwards."""
        self._extras.put(episodes.extras)
        num, room = len(episodes), self._ring.shape[1]
        begin = before % room
        if begin + num <= room:  # nearly always; five times as fast as the general case
            self._ring[0, begin : begin + num] = episodes.return_
            self._ring[1, begin : begin + num] = episodes.length
            return
        latest = episodes[-room:]
        at = np.arange(before + num - len(latest), before + num) % room
        self._ring[0, at], self._ring[1, at] = latest.return_, latest.length


class EpisodesReader:
    """Reads every row in the first process."""

    def __init__(self, shared: SharedEpisodes, counts: NDArray[np.int64]) -> None:
        """Treat the episodes that are there now as seen; `counts` `[K]` is their number per worker."""
        self._rings, self._extras = shared.rings.view(), ExtrasReader(shared.extras)
        self._seen = counts.copy()

    def skip(self, counts: NDArray[np.int64]) -> None:
        """Treat `counts` `[K]` episodes as seen: a resumed run has counted them, but they are not in this memory."""
        self._seen = counts.copy()

    def take(self, counts: NDArray[np.int64]) -> Episodes:
        """Return the episodes since the last call, in worker order; `counts` `[K]` is the number so far."""
        spans = zip(self._rings, self._seen.tolist(), counts.tolist(), strict=True)
        parts = [part for ring, seen, count in spans if count > seen for part in _cut(ring, seen, count)]
        self._seen = counts.copy()
        return_, length = parts[0] if len(parts) == 1 else np.concatenate(parts or [_NONE], axis=1)
        return Episodes(return_.copy(), length.astype(np.int64), self._extras.take())


def _cut(ring: NDArray[np.float64], seen: int, count: int) -> list[NDArray[np.float64]]:
    """Return episodes `seen` to `count` of a ring, except overwritten ones: one part, or two if they wrap around."""
    room = ring.shape[1]
    begin, end = max(seen, count - room) % room, (count - 1) % room + 1
    return [ring[:, begin:end]] if begin < end else [ring[:, begin:], ring[:, :end]]
