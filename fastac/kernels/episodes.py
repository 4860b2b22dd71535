"""Finds finished episodes, with their returns and lengths: in a rollout, and in each step of an evaluation."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import SUMS, ZERO, Bools, Doubles, Floats, Ints, Number, U, jit


@kernel("T N", is_step=True)
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
    num: Annotated[Tensor, "int64 1"],
) -> None:
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
        num: written: the number of episodes that ended.
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
    num[0] = found


# What `note_episodes` counts, by index.
OVER, BROKEN, STEPS, FOUND, CUT, PLAYING = range(6)


@kernel("N D E", is_step=True)
def note_episodes(
    obs: Annotated[Tensor, "float32 N D"],
    reward: Annotated[Tensor, "float32 N"],
    valid: Annotated[Tensor, "bool N"],
    terminated: Annotated[Tensor, "bool N"],
    truncated: Annotated[Tensor, "bool N"],
    life_lost: Annotated[Tensor, "bool N"],
    max_steps: int,
    running_return: Annotated[Tensor, "float64 N"],
    running_length: Annotated[Tensor, "int64 N"],
    quota: Annotated[Tensor, "int64 N"],
    playing: Annotated[Tensor, "bool N"],
    noted: Annotated[Tensor, "bool N"],
    return_: Annotated[Tensor, "float64 E"],
    length: Annotated[Tensor, "int64 E"],
    counts: Annotated[Tensor, "int64 6"],
) -> None:
    """Take a step of an evaluation: write the episodes that ended, up to the quota of every env.

    Nothing but `counts` is written if an observation or a reward is not finite.

    Args:
        obs: after the step.
        reward: 0 where not valid.
        valid: envs whose step was a real transition.
        terminated: envs whose episode ended.
        truncated: envs whose episode was ended by a time limit.
        life_lost: envs that terminated only because a life was lost; the episode continues.
        max_steps: an episode that has lasted so long is cut: it counts as it is, and its env stops playing.
        running_return: returns of the running episodes, updated.
        running_length: lengths of the running episodes, updated.
        quota: episodes that are left to play, updated.
        playing: envs that still play, updated.
        noted: written, envs whose episode was counted in this step.
        return_: of the counted episodes, those of this step appended: those that ended, by env, then those cut.
        length: likewise.
        counts: updated: whether no env plays any more, one more than the first env whose numbers are not finite,
            steps taken, episodes counted and those of them that were cut, envs that still play.
    """
    broken = ~(torch.isfinite(reward) & torch.isfinite(obs).all(dim=1))  # [N]
    if bool(broken.any()):
        counts[BROKEN], counts[OVER] = broken.nonzero()[0, 0] + 1, 1
        return
    running_return += reward
    running_length += valid
    ended = (terminated & ~life_lost) | truncated
    cut = playing & ~ended & (running_length >= max_steps)
    for which in (ended & playing, cut):
        begin = int(counts[FOUND])
        end = begin + int(which.sum())
        return_[begin:end], length[begin:end] = running_return[which], running_length[which]
        counts[FOUND] = end
    running_return[ended], running_length[ended] = 0.0, 0
    noted.copy_((ended & playing) | cut)
    quota -= noted.long()
    playing &= (quota > 0) & ~cut
    counts[STEPS] += 1
    counts[CUT] += cut.sum()
    counts[PLAYING] = playing.sum()
    counts[OVER] = ~playing.any()


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
    num: Ints,
) -> None:
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
    num[0] = np.int64(found)


@jit(SUMS)
def _find_broken(obs: Floats, reward: Floats, num_envs: int, size: int) -> Number:
    """Return one more than the first env whose numbers are not finite, or 0."""
    total = ZERO
    for n in range(num_envs):
        total += reward[n] * ZERO  # NaN if not finite
    for k in range(num_envs * size):
        total += obs[k] * ZERO
    if total == total:
        return U(0)
    for n in range(num_envs):
        total = reward[n] * ZERO
        for k in range(n * size, n * size + size):
            total += obs[k] * ZERO
        if total != total:
            return n + U(1)
    return U(0)


@note_episodes.numba
def _note_episodes_numba(
    num_envs: int,
    obs_size: int,
    most: int,
    obs: Floats,
    reward: Floats,
    valid: Bools,
    terminated: Bools,
    truncated: Bools,
    life_lost: Bools,
    max_steps: int,
    running_return: Doubles,
    running_length: Ints,
    quota: Ints,
    playing: Bools,
    noted: Bools,
    return_: Doubles,
    length: Ints,
    counts: Ints,
) -> None:
    width = U(num_envs)
    broken = _find_broken(obs, reward, width, U(obs_size))
    if broken:
        counts[BROKEN], counts[OVER] = broken, 1
        return
    _add_row(reward, valid, running_return, running_length, U(0), width)
    found, left = counts[FOUND], 0
    for n in range(width):
        is_end = (terminated[n] and not life_lost[n]) or truncated[n]
        noted[n] = is_end and playing[n]
        if noted[n]:
            return_[found], length[found] = running_return[n], running_length[n]
            quota[n] -= 1
            playing[n] = quota[n] > 0
            found += 1
        if is_end:
            running_return[n], running_length[n] = 0.0, 0
    for n in range(width):
        # An episode that has just ended has length 0 here, and the limit is at least 1.
        if playing[n] and running_length[n] >= max_steps:
            return_[found], length[found] = running_return[n], running_length[n]
            quota[n] -= 1
            noted[n], playing[n] = True, False
            found += 1
            counts[CUT] += 1
        left += int(playing[n])
    counts[STEPS] += 1
    counts[FOUND], counts[PLAYING], counts[OVER] = found, left, np.int64(left == 0)
