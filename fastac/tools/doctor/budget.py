"""How long the parts of an examination may take."""

from __future__ import annotations

import time


class Budget:
    """A part of the time; each part of it may take what earlier ones have left over."""

    def __init__(self, seconds: float) -> None:
        """Begin."""
        self._until_s = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return max(0.0, self._until_s - time.monotonic())

    @property
    def is_spent(self) -> bool:
        """Whether no time is left."""
        return self.left_s == 0.0

    def part(self, share: float) -> Budget:
        """Return a share of what is left."""
        return Budget(share * self.left_s)
