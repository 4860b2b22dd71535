"""Finds finished episodes in rollouts: raw returns and lengths, over valid rows only."""

from __future__ import annotations

import torch

from fastac.contract import Episodes, StateTree, read_tensor
from fastac.kernels import find_episodes
from fastac.rollout.buffer import Rollout


class EpisodeCounter:
    """Adds up every env's episode so far; own statistics, because Gymnasium's differ between modes."""

    def __init__(self, num_steps: int, num_envs: int) -> None:
        """Start every env at zero; a rollout holds at most `num_steps` rows."""
        rows = num_steps * num_envs
        self._return = torch.zeros(num_envs, dtype=torch.float64)  # [N], of the episode so far
        self._length = torch.zeros(num_envs, dtype=torch.int64)  # [N]
        self._found = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        """Memory of what a rollout may hold."""
        return sum(found.nbytes for found in self._found)

    def count(self, rollout: Rollout) -> Episodes:
        """Take in a rollout, return the episodes that ended in it, in order of time, then env."""
        rows = (rollout.reward, rollout.valid, rollout.terminated, rollout.truncated, rollout.life_lost)
        room = [found[: rollout.reward.numel()] for found in self._found]
        num = find_episodes(*rows, self._return, self._length, *room)
        return_, length = (found[:num].numpy().copy() for found in room)
        return Episodes(return_, length)

    def restart_episodes(self) -> None:
        """Forget the episodes so far."""
        self._return.zero_()
        self._length.zero_()

    def get_state(self) -> StateTree:
        """The sums so far."""
        return {"return": self._return.clone(), "length": self._length.clone()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._return.copy_(read_tensor(state, "return", self._return))
        self._length.copy_(read_tensor(state, "length", self._length))
