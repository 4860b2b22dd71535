"""Finds finished episodes in rollouts: raw returns and lengths, over valid rows only."""

from __future__ import annotations

import numpy as np

from fastac.contract import BoolArray, Episode, FloatArray, StateTree, read_tensor
from fastac.rollout.buffer import Rollout


class EpisodeCounter:
    """Adds up every env's episode so far; own statistics, because Gymnasium's differ between modes."""

    def __init__(self, num_envs: int) -> None:
        """Start every env at zero."""
        self._return = np.zeros(num_envs)  # [N], of the episode so far
        self._length = np.zeros(num_envs, dtype=np.int64)  # [N]

    def count(self, rollout: Rollout) -> tuple[Episode, ...]:
        """Take in a rollout, return the episodes that ended in it, in order of time, then env."""
        reward, valid, done = rollout.reward.numpy(), rollout.valid.numpy(), rollout.done.numpy()
        finished: list[Episode] = []
        last = 0
        for t in np.flatnonzero(done.any(axis=1)).tolist():
            self._add(reward[last : t + 1], valid[last : t + 1])
            for n in np.flatnonzero(done[t]).tolist():
                finished.append(Episode(float(self._return[n]), int(self._length[n])))
            self._return[done[t]] = 0.0
            self._length[done[t]] = 0
            last = t + 1
        self._add(reward[last:], valid[last:])
        return tuple(finished)

    def _add(self, reward: FloatArray, valid: BoolArray) -> None:
        self._return += np.where(valid, reward, 0.0).sum(axis=0)
        self._length += valid.sum(axis=0)

    def restart_episodes(self) -> None:
        """Forget the episodes so far."""
        self._return[:] = 0.0
        self._length[:] = 0

    def get_state(self) -> StateTree:
        """The sums so far."""
        return {"return": self._return.copy(), "length": self._length.copy()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._return[:] = read_tensor(state, "return").numpy()
        self._length[:] = read_tensor(state, "length").numpy()
