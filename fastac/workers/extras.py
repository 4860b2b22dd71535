"""Transfer of the numbers in the `info` of ended episodes from the workers to the first process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastac.contract import EXTRAS_WINDOW, MAX_EXTRAS, Extras
from fastac.shared_memory import SharedArray

_KEY_BYTES = 64


@dataclass(frozen=True, slots=True)
class SharedExtras:
    """Memory shared by K workers; each writes its own row.

    Attributes:
        keys: `[K, 16, 64]`, in UTF-8, in the order in which the worker found them.
        values: `[K, 16, 100]`, a ring buffer per key: statistics use only the latest 100 values.
        counts: `[K, 16]`, values so far.
    """

    keys: SharedArray[np.uint8]
    values: SharedArray[np.float64]
    counts: SharedArray[np.int64]

    @classmethod
    def allocate(cls, workers: int) -> SharedExtras:
        """Allocate for K = `workers`."""
        return cls(
            SharedArray((workers, MAX_EXTRAS, _KEY_BYTES), np.dtype(np.uint8)),
            SharedArray((workers, MAX_EXTRAS, EXTRAS_WINDOW), np.dtype(np.float64)),
            SharedArray((workers, MAX_EXTRAS), np.dtype(np.int64)),
        )


class ExtrasWriter:
    """Writes a worker's row."""

    def __init__(self, reports: SharedExtras, worker: int) -> None:
        """Continue the row of `worker`; a lost worker may have begun it."""
        self._keys, self._values = reports.keys.view()[worker], reports.values.view()[worker]
        self._counts = reports.counts.view()[worker]
        used = int((self._counts > 0).sum())  # a key without values may be half written
        self._places = {_decode(key): place for place, key in enumerate(self._keys[:used])}

    def put(self, extras: Extras) -> None:
        """Add values of this worker's episodes; a key is dropped if all 16 places are taken."""
        for key, values in extras.items():
            place = self._places.get(key, len(self._places))
            if place == MAX_EXTRAS:
                continue
            if key not in self._places:
                self._places[key] = place
                self._keys[place] = np.frombuffer(key.encode().ljust(_KEY_BYTES, b"\0"), dtype=np.uint8)
            latest, count = values[-EXTRAS_WINDOW:], int(self._counts[place]) + len(values)
            self._values[place, np.arange(count - len(latest), count) % EXTRAS_WINDOW] = latest
            self._counts[place] = count


class ExtrasReader:
    """Reads every row in the first process."""

    def __init__(self, reports: SharedExtras) -> None:
        """Treat the values that are there now as seen."""
        self._keys, self._values, self._counts = reports.keys.view(), reports.values.view(), reports.counts.view()
        self._seen = self._counts.copy()

    def take(self) -> Extras:
        """Return the values since the last call, in worker order; at most the latest 100 per worker and key."""
        counts = self._counts.copy()
        is_new = counts > self._seen
        if not is_new.any():  # nearly always
            return {}
        found: dict[str, list[NDArray[np.float64]]] = {}
        for worker, place in np.argwhere(is_new):
            after = int(counts[worker, place])
            before = max(int(self._seen[worker, place]), after - EXTRAS_WINDOW)
            values = self._values[worker, place, np.arange(before, after) % EXTRAS_WINDOW]
            found.setdefault(_decode(self._keys[worker, place]), []).append(values)
        self._seen = counts
        return {key: np.concatenate(values) for key, values in found.items()}


def _decode(key: NDArray[np.uint8]) -> str:
    return bytes(key).rstrip(b"\0").decode()
