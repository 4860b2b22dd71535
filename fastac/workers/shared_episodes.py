"""Finished episodes on their way from the workers to the first process."""

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
    """Shared by K workers, each with a row of its own. How many episodes there were, workers count elsewhere.

    Attributes:
        rings: `[K, 2, E]`, returns and lengths of each worker's latest; the oldest give way.
        extras: what they gave in `info`.
    """

    rings: SharedArray[np.float64]
    extras: SharedExtras

    @classmethod
    def allocate(cls, workers: int, room: int) -> SharedEpisodes:
        """Allocate for so many workers, and for E = `room` episodes of each that nobody has read yet."""
        return cls(SharedArray((workers, 2, room), np.dtype(np.float64), apart=True), SharedExtras.allocate(workers))


class EpisodesWriter:
    """A worker's row."""

    def __init__(self, shared: SharedEpisodes, worker: int) -> None:
        """Take the row, where a worker before this one may have left it."""
        self._ring, self._extras = shared.rings.view()[worker], ExtrasWriter(shared.extras, worker)

    def put(self, episodes: Episodes, before: int) -> None:
        """Add episodes of this worker, of which there were `before`; count them afterwards."""
        self._extras.put(episodes.extras)
        num, room = len(episodes), self._ring.shape[1]
        begin = before % room
        if begin + num <= room:  # nearly always; it costs a fifth of the other
            self._ring[0, begin : begin + num] = episodes.return_
            self._ring[1, begin : begin + num] = episodes.length
            return
        latest = episodes[-room:]
        at = np.arange(before + num - len(latest), before + num) % room
        self._ring[0, at], self._ring[1, at] = latest.return_, latest.length


class EpisodesReader:
    """Reads every row in the first process."""

    def __init__(self, shared: SharedEpisodes, counts: NDArray[np.int64]) -> None:
        """Begin with what there is by now, `counts` `[K]`, as seen."""
        self._rings, self._extras = shared.rings.view(), ExtrasReader(shared.extras)
        self._seen = counts.copy()

    def skip(self, counts: NDArray[np.int64]) -> None:
        """Take `counts` `[K]` episodes as seen, which are not in the memory but were counted before."""
        self._seen = counts.copy()

    def take(self, counts: NDArray[np.int64]) -> Episodes:
        """Return those since the last call, worker by worker, where there were `counts` `[K]` so far."""
        spans = zip(self._rings, self._seen.tolist(), counts.tolist(), strict=True)
        parts = [part for ring, seen, count in spans if count > seen for part in _cut(ring, seen, count)]
        self._seen = counts.copy()
        return_, length = parts[0] if len(parts) == 1 else np.concatenate(parts or [_NONE], axis=1)
        return Episodes(return_.copy(), length.astype(np.int64), self._extras.take())


def _cut(ring: NDArray[np.float64], seen: int, count: int) -> list[NDArray[np.float64]]:
    """Return a ring's episodes from `seen` to `count`, those still there: one part, or two where it begins anew."""
    room = ring.shape[1]
    begin, end = max(seen, count - room) % room, (count - 1) % room + 1
    return [ring[:, begin:end]] if begin < end else [ring[:, begin:], ring[:, :end]]
