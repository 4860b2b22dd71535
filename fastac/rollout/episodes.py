"""Finds finished episodes in rollouts: raw returns and lengths, over valid rows only."""

from __future__ import annotations

import torch

from fastac.contract import Episodes, StateTree, read_tensor
from fastac.kernels import find_episodes
from fastac.rollout.buffer import Rollout


class EpisodeCounter:
    """Sums up the running episode of every env; Gymnasium's own statistics differ between autoreset modes."""

    def __init__(self, num_steps: int, num_envs: int) -> None:
        """Start every env at zero; a rollout has at most `num_steps` steps of `num_envs` envs."""
        rows = num_steps * num_envs
        self._return = torch.zeros(num_envs, dtype=torch.float64)  # [N], of the running episode
        self._length = torch.zeros(num_envs, dtype=torch.int64)  # [N]
        self._found = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        """Memory in bytes of the buffers for finished episodes."""
        return sum(found.nbytes for found in self._found)

    def count(self, rollout: Rollout) -> Episodes:
        """Add a rollout; return the episodes that ended in it, ordered by time, then env."""
        rows = (rollout.reward, rollout.valid, rollout.terminated, rollout.truncated, rollout.life_lost)
        room = [found[: rollout.reward.numel()] for found in self._found]
        num = find_episodes(*rows, self._return, self._length, *room)
        return_, length = (found[:num].numpy().copy() for found in room)
        return Episodes(return_, length)

    def restart_episodes(self) -> None:
        """Discard the running episodes."""
        self._return.zero_()
        self._length.zero_()

    def get_state(self) -> StateTree:
        """Return the sums of the running episodes."""
        return {"return": self._return.clone(), "length": self._length.clone()}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._return.copy_(read_tensor(state, "return", self._return))
        self._length.copy_(read_tensor(state, "length", self._length))
