"""What differs between operating systems."""

from __future__ import annotations

from pathlib import Path


def resident_bytes(peak: bool = False) -> int:
    """Return this process's resident memory, the most so far or that of now; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    label = "VmHWM:" if peak else "VmRSS:"
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(label)), 0)
