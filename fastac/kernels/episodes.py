"""Finds finished episodes in a rollout, with their returns and lengths."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import Bools, Doubles, Floats, Ints, Number, U, jit


@kernel("T N")
def find_episodes(
    reward: Annotated[Tensor, "float32 T N"],
    valid: Annotated[Tensor, "bool T N"],
    terminated: Annotated[Tensor, "bool T N"],
    truncated: Annotated[Tensor, "bool T N"],
    life_lost: Annotated[Tensor, "bool T N"],
    running_return: Annotated[Tensor, "float64 N"],
    running_length: Annotated[Tensor, "int64 N"],
    return_: Annotated[Tensor, "float64 T*N"],
    length: Annotated[Tensor, "int64 T*N"],
) -> int:
    """Add a rollout to the running episode of every env; write the episodes that ended, ordered by time, then env.

    Args:
        reward: counted where valid.
        valid: steps that were real transitions.
        terminated: steps that ended an episode.
        truncated: steps at which a time limit ended an episode.
        life_lost: steps terminated only because a life was lost; the episode continues.
        running_return: returns of the running episodes, updated.
        running_length: lengths of the running episodes, updated.
        return_: the first entries are written.
        length: the first entries are written.

    Returns:
        Number of episodes that ended.
    """
    found = 0
    for t in range(reward.shape[0]):
        running_return += torch.where(valid[t], reward[t].double(), 0.0)
        running_length += valid[t]
        done = (terminated[t] & ~life_lost[t]) | truncated[t]  # [N]
        ended = int(done.sum())
        return_[found : found + ended] = running_return[done]
        length[found : found + ended] = running_length[done]
        running_return[done] = 0.0
        running_length[done] = 0
        found += ended
    return found


# ---- Numba ------------------------------------------------------------------------------------------


@jit()
def _add_row(
    reward: Floats, valid: Bools, running_return: Doubles, running_length: Ints, start: int, num_envs: int
) -> None:
    for n in range(num_envs):
        number = np.float64(reward[start + n])
        running_return[n] += number if valid[start + n] else 0.0
    for n in range(num_envs):
        running_length[n] += np.int64(valid[start + n])


@jit()
def _any_done(terminated: Bools, truncated: Bools, start: int, num_envs: int) -> Number:
    done = np.uint8(0)
    for n in range(num_envs):
        done |= np.uint8(terminated[start + n]) | np.uint8(truncated[start + n])
    return done != 0


@find_episodes.numba
def _find_episodes_numba(
    num_steps: int,
    num_envs: int,
    reward: Floats,
    valid: Bools,
    terminated: Bools,
    truncated: Bools,
    life_lost: Bools,
    running_return: Doubles,
    running_length: Ints,
    return_: Doubles,
    length: Ints,
) -> Number:
    found, width = U(0), U(num_envs)
    for t in range(U(num_steps)):
        start = t * width
        _add_row(reward, valid, running_return, running_length, start, width)
        if _any_done(terminated, truncated, start, width):
            for n in range(width):
                if (terminated[start + n] and not life_lost[start + n]) or truncated[start + n]:
                    return_[found], length[found] = running_return[n], running_length[n]
                    running_return[n], running_length[n] = 0.0, 0
                    found += U(1)
    return np.int64(found)
