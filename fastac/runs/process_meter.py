"""Memory and processor time of this process, as scalars."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastac.system import resident_bytes


class ProcessMeter:
    """Reads the figures of this process, without those of its workers; a call takes about 50 us."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu_clock: Callable[[], float] = time.process_time
    ) -> None:
        """Begin to count; both clocks return seconds, the second those that the process's threads have computed."""
        self._clock, self._cpu_clock = clock, cpu_clock
        self._read_at, self._cpu_s = clock(), cpu_clock()

    def read(self) -> dict[str, float | None]:
        """Return resident memory in MiB, and the use of cores since the last call in percent: 200 is two cores."""
        now, cpu_s, resident = self._clock(), self._cpu_clock(), resident_bytes()
        spent_s, used_s = now - self._read_at, cpu_s - self._cpu_s
        self._read_at, self._cpu_s = now, cpu_s
        return {
            "system/rss_mib": resident / 2**20 if resident else None,
            "system/cpu_percent": 100.0 * used_s / spent_s if spent_s > 0.0 else None,
        }
