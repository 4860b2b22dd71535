"""Means over the last episodes, and rates."""

from __future__ import annotations

from collections import deque
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from fastac.contract import EXTRAS_WINDOW, MAX_EXTRAS, Report, StateLeaf, StateTree, read_branch, read_count

_RATE_WINDOW_S = 5.0
_RATE_SAMPLES = 2048  # bounds memory: above 400 reports per second the rate's window is shorter


class ReturnTracker:
    """Mean return and length over the last episodes, and env steps per second.

    Attributes:
        longest: the longest episode so far, in steps; 0 before the first episode ended.
    """

    def __init__(self, window_episodes: int = EXTRAS_WINDOW) -> None:
        """Start without episodes."""
        self.longest = 0
        self._returns: deque[float] = deque(maxlen=window_episodes)
        self._lengths: deque[int] = deque(maxlen=window_episodes)
        self._extras: dict[str, deque[float]] = {}
        self._samples: deque[tuple[float, int]] = deque(maxlen=_RATE_SAMPLES)  # (train_wall_s, env_steps)

    def update(self, report: Report) -> None:
        """Add one iteration."""
        window = self._returns.maxlen or 0
        self._returns.extend(report.finished.return_[-window:].tolist())
        self._lengths.extend(report.finished.length[-window:].tolist())
        if len(report.finished):
            self.longest = max(self.longest, int(report.finished.length.max()))
        for key, values in report.finished.extras.items():
            if len(values) and (key in self._extras or len(self._extras) < MAX_EXTRAS):
                self._extras.setdefault(key, deque(maxlen=window)).extend(values[-window:].tolist())
        self._samples.append((report.train_wall_s, report.env_steps))
        while len(self._samples) > 2 and report.train_wall_s - self._samples[1][0] >= _RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def mean_return(self) -> float | None:
        """Mean raw return over the window, None before the first episode ended."""
        return sum(self._returns) / len(self._returns) if self._returns else None

    @property
    def mean_length(self) -> float | None:
        """Mean episode length over the window, None before the first episode ended."""
        return sum(self._lengths) / len(self._lengths) if self._lengths else None

    @property
    def extras(self) -> dict[str, float]:
        """Means over the same window of the episodes' values in `info`, by key."""
        return {key: sum(values) / len(values) for key, values in self._extras.items()}

    @property
    def sps(self) -> float:
        """Env steps per second of training since the run began."""
        wall_s, env_steps = self._samples[-1] if self._samples else (0.0, 0)
        return env_steps / wall_s if wall_s > 0.0 else 0.0

    @property
    def sps_window(self) -> float:
        """Env steps per second over the last 5 seconds of training (at first, since the run began)."""
        if len(self._samples) < 2:
            return self.sps
        (wall_0, steps_0), (wall_1, steps_1) = self._samples[0], self._samples[-1]
        return (steps_1 - steps_0) / (wall_1 - wall_0) if wall_1 > wall_0 else self.sps

    def get_state(self) -> StateTree:
        """Return the episode window; rates depend on the machine and start afresh after a resume."""
        extras = enumerate(self._extras.items())  # numbered, since a key may contain any character
        return {
            "returns": np.array(self._returns, np.float64),
            "lengths": np.array(self._lengths, np.int64),
            "longest": self.longest,
            "extras": {str(at): {"key": key, "values": np.array(values, np.float64)} for at, (key, values) in extras},
        }

    def load_state(self, state: StateTree) -> None:
        """Continue from `get_state`.

        Raises:
            ValueError: the state is malformed.
        """
        returns, lengths = state.get("returns"), state.get("lengths")
        if not _is_window(returns, np.float64) or not _is_window(lengths, np.int64) or len(returns) != len(lengths):
            raise ValueError("the saved window of episodes is none: expected their returns and lengths")
        self.longest = read_count(state, "longest")
        self._returns.clear()
        self._lengths.clear()
        self._returns.extend(returns.tolist())
        self._lengths.extend(lengths.tolist())
        self._extras.clear()
        extras = read_branch(state, "extras")
        for at in extras:
            extra = read_branch(extras, at)
            key, values = extra.get("key"), extra.get("values")
            if not isinstance(key, str) or not _is_window(values, np.float64):
                raise ValueError("the saved window of what episodes give is none: expected a key and its numbers")
            self._extras[key] = deque(values.tolist(), maxlen=self._returns.maxlen)
        self._samples.clear()


def _is_window(
    saved: StateTree | StateLeaf, kind: type[np.float64] | type[np.int64]
) -> TypeGuard[NDArray[np.float64 | np.int64]]:
    return isinstance(saved, np.ndarray) and saved.ndim == 1 and saved.dtype == kind and bool(np.isfinite(saved).all())
