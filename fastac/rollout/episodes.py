"""Checks rollouts, and finds finished episodes in them: raw returns and lengths, over valid rows only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastac.contract import Episodes, StateTree, read_tensor
from fastac.kernels import Op, find_episodes, find_nonfinite, join_calls
from fastac.rollout.buffer import Rollout


def join_episodes(parts: Sequence[Episodes]) -> Episodes:
    """Return the episodes of all parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    keys = {key: None for part in parts for key in part.extras}  # in order
    extras = {key: np.concatenate([part.extras[key] for part in parts if key in part.extras]) for key in keys}
    return Episodes(np.concatenate([p.return_ for p in parts]), np.concatenate([p.length for p in parts]), extras)


class EpisodeCounter:
    """Sums up the running episode of every env; Gymnasium's own statistics differ between autoreset modes."""

    def __init__(self, num_steps: int, num_envs: int) -> None:
        """Start every env at zero; a rollout has at most `num_steps` steps of `num_envs` envs."""
        rows = num_steps * num_envs
        self._return = torch.zeros(num_envs, dtype=torch.float64)  # [N], of the running episode
        self._length = torch.zeros(num_envs, dtype=torch.int64)  # [N]
        self._found = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.int64)
        self._num, self._broken = torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        # Views, since making one costs as much as a kernel here.
        self._views = self._num.numpy(), self._broken.numpy(), self._found[0].numpy(), self._found[1].numpy()
        self._rollout: Rollout | None = None  # that the calls below read
        self._check: list[Op] = []
        self._find: list[Op] = []

    @property
    def nbytes(self) -> int:
        """Memory in bytes of the buffers for finished episodes."""
        return sum(found.nbytes for found in self._found)

    def count(self, rollout: Rollout) -> Episodes:
        """Check a rollout and add it; return the episodes that ended in it, ordered by time, then env.

        Raises:
            EnvFailure: an observation or a reward is not finite.
        """
        if rollout is not self._rollout:
            self._prepare(rollout)
        for op in self._check:
            op()
        num, broken, returns, lengths = self._views
        if any(broken.tolist()):
            rollout.check_finite()
        for op in self._find:
            op()
        return Episodes(returns[: num[0]].copy(), lengths[: num[0]].copy())

    def _prepare(self, rollout: Rollout) -> None:
        """Make the calls for a rollout; the usual one is the same every time."""
        self._rollout = rollout
        floats = [rows.view(-1) for rows in (rollout.obs, rollout.reward) if rows.dtype == torch.float32]
        checks = zip(floats, self._broken.split(1), strict=False)
        self._check = join_calls([find_nonfinite.prepare(numbers, broken) for numbers, broken in checks])
        rows = (rollout.reward, rollout.valid, rollout.terminated, rollout.truncated, rollout.life_lost)
        return_, length = (found[: rollout.reward.numel()] for found in self._found)
        self._find = [find_episodes.prepare(*rows, self._return, self._length, return_, length, self._num)]

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
