"""Generalised advantage estimation, and the moments for normalising advantages.

CPU only: rollouts are always in CPU memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import FUSED, SUMS, ZERO, Bools, Doubles, Floats, Number, U, jit

EPS = 1e-8  # added to the standard deviation when normalising advantages


def compute_gae(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Estimate advantages by generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    Args:
        reward: `[T, N]`.
        value: `[T+1, N]`; row T is the value of the observation after the last step.
        terminated: `[T, N]` bool: nothing is bootstrapped.
        truncated: `[T, N]` bool: the episode was cut; value[t+1] must be the final observation's value. If that value
            came separately, the learner has added it to the reward and has set `terminated` too.
        gamma: discount factor.
        gae_lambda: 0 gives the TD error, 1 the Monte Carlo advantage.

    Returns:
        advantage and return, each `[T, N]`. Rows that are not valid hold meaningless numbers.
    """
    advantage = reward.new_zeros(reward.shape)  # [T, N]
    following = reward.new_zeros(reward.shape[1:])  # [N], the advantage of row t+1
    for t in reversed(range(reward.shape[0])):
        next_value = torch.where(terminated[t], 0.0, value[t + 1])  # [N]
        following = torch.where(terminated[t] | truncated[t], 0.0, following)
        following = reward[t] + gamma * next_value - value[t] + gamma * gae_lambda * following
        advantage[t] = following
    return advantage, advantage + value[:-1]


def compute_moments(row: Tensor, valid: Tensor) -> tuple[float, float, float]:
    """Return count, mean and M2 (sum of squared deviations from the mean) of the valid elements, or zeros."""
    chosen = row[valid].double()
    if chosen.numel() == 0:
        return 0.0, 0.0, 0.0
    mean = chosen.mean()
    return float(chosen.numel()), float(mean), float((chosen - mean).square().sum())


@kernel("T N", is_step=True)
def gae(
    reward: Annotated[Tensor, "float32 T N"],
    value: Annotated[Tensor, "float32 T+1 N"],
    terminated: Annotated[Tensor, "bool T N"],
    truncated: Annotated[Tensor, "bool T N"],
    valid: Annotated[Tensor, "bool T N"],
    gamma: float,
    gae_lambda: float,
    advantage: Annotated[Tensor, "float32 T N"],
    return_: Annotated[Tensor, "float32 T N"],
    moments: Annotated[Tensor, "float64 5"],
) -> None:
    """Write the advantages and returns of `compute_gae`, and their moments over valid rows.

    Args:
        reward: rewards.
        value: row T is the value of the observation after the last step.
        terminated: nothing is bootstrapped.
        truncated: the episode was cut; value[t+1] must be the final observation's value. If that value came
            separately, the learner has added it to the reward and has set `terminated` too.
        valid: rows that count in the moments.
        gamma: discount factor.
        gae_lambda: 0 gives the TD error, 1 the Monte Carlo advantage.
        advantage: written.
        return_: written.
        moments: written: number of valid rows, mean and M2 of the advantage, mean and M2 of the return. M2 is the sum
            of squared deviations from the mean; it is exactly 0 if all elements are equal.
    """
    estimates = compute_gae(reward, value, terminated, truncated, gamma, gae_lambda)
    advantage.copy_(estimates[0])
    return_.copy_(estimates[1])
    count, *of_advantage = compute_moments(advantage, valid)
    _, *of_return = compute_moments(return_, valid)
    moments.copy_(torch.tensor([count, *of_advantage, *of_return], dtype=torch.float64))


@kernel("M", is_step=True)
def batch_moments(
    advantage: Annotated[Tensor, "float32 M"],
    valid: Annotated[Tensor, "bool M"],
    moments: Annotated[Tensor, "float64 3"],
) -> None:
    """Write the number of valid rows, mean and M2 of `advantage` to `moments`, as `gae` does."""
    moments.copy_(torch.tensor(compute_moments(advantage, valid), dtype=torch.float64))


@kernel("K", is_step=True)
def weigh_rows(
    moments: Annotated[Tensor, "float64 K 5"], normalize: bool, weights: Annotated[Tensor, "float64 3"]
) -> None:
    """Write the weight of a row, and shift and scale of the advantages, from the moments of K disjoint parts.

    Moments are merged by Chan, Golub and LeVeque 1979.

    Args:
        moments: of each part, as `gae` writes them; those of the return are not read.
        normalize: use (advantage - mean) / (standard deviation + 1e-8); otherwise shift and scale are 0 and 1.
        weights: written: 1 / number of rows, shift, scale.
    """
    count, mean, m2 = merge_moments(moments[:, :3].tolist())
    weights[0] = 1.0 / max(count, 1.0)
    weights[1] = mean if normalize else 0.0
    weights[2] = 1.0 / (math.sqrt(m2 / max(count, 1.0)) + EPS) if normalize else 1.0


def merge_moments(parts: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Merge count, mean and M2 of disjoint rows (Chan, Golub and LeVeque 1979)."""
    count, mean, m2 = parts[0]
    for more, its_mean, its_m2 in parts[1:]:
        if more:
            total, delta = count + more, its_mean - mean
            m2 += its_m2 + delta * delta * count * more / total
            mean += delta * more / total
            count = total
    return count, mean, m2


# ---- Numba: moments ---------------------------------------------------------------------------------

# Elements summed in float32 before adding to float64; a strip fits in L1.
_STRIP = 1024
# The mean of the first 64 elements is the initial shift of the variance sum.
_HEAD = 64


@jit()
def _first_valid(valid: Bools, start: int, size: int) -> Number:
    """Return the index of the first valid row, or of the first row if none is valid."""
    for k in range(size):
        if valid[start + k]:
            return start + k
    return start


@jit()
def _merge(moments: Doubles, k: int, count: int, shift: float, total: float, squares: float) -> Number:
    """Merge sums of deviations from `shift` into mean and M2, `moments[k]` and `[k+1]`, of `moments[0]` rows.

    As in Chan, Golub and LeVeque 1983. Returns the new mean, which is the shift of the next strip: deviations from it
    are small enough for float32, and exactly 0 if all numbers are equal.
    """
    mean = np.float64(total) / count
    delta = np.float64(shift) + mean - moments[k]
    share = count / (moments[0] + count)
    moments[k] += delta * share
    moments[k + 1] += max(0.0, np.float64(squares) - total * mean) + delta * delta * moments[0] * share
    return moments[k]


@weigh_rows.numba
def _weigh_rows_numba(num_parts: int, moments: Doubles, normalize: bool, weights: Doubles) -> None:
    count, mean, m2 = moments[0], moments[1], moments[2]
    for k in range(1, num_parts):
        more = moments[5 * k]
        if more > 0.0:
            total, delta = count + more, moments[5 * k + 1] - mean
            m2 += moments[5 * k + 2] + delta * delta * count * more / total
            mean += delta * more / total
            count = total
    rows = max(count, 1.0)
    weights[0], weights[1], weights[2] = 1.0 / rows, 0.0, 1.0
    if normalize:
        weights[1], weights[2] = mean, 1.0 / (math.sqrt(m2 / rows) + EPS)


@jit()
def _deviation(number: float, mean: float, counts: bool) -> Number:
    """Separate function so that LLVM's reassociation cannot rewrite `number - mean`."""
    return number - mean if counts else ZERO


@jit(SUMS)
def _sum_strip(row: Floats, valid: Bools, start: int, size: int, shift: float) -> Number:
    count, total, squares = np.int32(0), ZERO, ZERO
    for k in range(size):
        deviation = _deviation(row[start + k], shift, valid[start + k])
        count += np.int32(valid[start + k])
        total += deviation
        squares += deviation * deviation
    return count, total, squares


@batch_moments.numba
def _batch_moments_numba(size: int, advantage: Floats, valid: Bools, moments: Doubles) -> None:
    moments[:] = 0.0
    shift: Number = ZERO
    for start in range(0, size, _STRIP):
        strip = U(min(_STRIP, size - start))
        if moments[0] == 0.0:
            shift = advantage[_first_valid(valid, U(start), strip)]
            count, total, _ = _sum_strip(advantage, valid, U(start), min(strip, U(_HEAD)), shift)
            shift += np.float32(total / max(count, 1))
        count, total, squares = _sum_strip(advantage, valid, U(start), strip, shift)
        if count:
            shift = np.float32(_merge(moments, 1, count, shift, total, squares))
            moments[0] += count


# ---- Numba: advantages ------------------------------------------------------------------------------

# Below this many envs, loop over all steps and envs in one flat loop.
_NARROW = 32


@jit(FUSED)
def _next_advantage(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    gamma: float,
    decay: float,
    advantage: Floats,
    k: int,
    num_envs: int,
) -> Number:
    next_value = ZERO if terminated[k] else value[k + num_envs]
    following = ZERO if terminated[k] | truncated[k] else advantage[k + num_envs]
    return reward[k] + gamma * next_value - value[k] + decay * following


@jit(FUSED)
def _last_row(
    reward: Floats, value: Floats, terminated: Bools, gamma: float, advantage: Floats, start: int, num_envs: int
) -> None:
    for n in range(num_envs):
        k = start + n
        next_value = ZERO if terminated[k] else value[k + num_envs]
        advantage[k] = reward[k] + gamma * next_value - value[k]


@jit(FUSED)
def _row(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    gamma: float,
    decay: float,
    advantage: Floats,
    start: int,
    num_envs: int,
) -> None:
    for n in range(num_envs):
        advantage[start + n] = _next_advantage(
            reward, value, terminated, truncated, gamma, decay, advantage, start + n, num_envs
        )


@jit(FUSED)
def _narrow_rows(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    gamma: float,
    decay: float,
    advantage: Floats,
    start: int,
    stop: int,
    num_envs: int,
) -> None:
    for k in range(stop - start):
        advantage[stop - U(1) - k] = _next_advantage(
            reward, value, terminated, truncated, gamma, decay, advantage, stop - U(1) - k, num_envs
        )


@jit(SUMS)
def _finish_strip(
    advantage: Floats,
    value: Floats,
    return_: Floats,
    valid: Bools,
    start: int,
    size: int,
    shift_a: float,
    shift_r: float,
) -> Number:
    """Write the returns and sum the moments. One fused loop; three separate loops were 33 % slower."""
    count, total_a, squares_a, total_r, squares_r = np.int32(0), ZERO, ZERO, ZERO, ZERO
    for k in range(size):
        estimate = advantage[start + k] + value[start + k]
        return_[start + k] = estimate
        deviation_a = _deviation(advantage[start + k], shift_a, valid[start + k])
        deviation_r = _deviation(estimate, shift_r, valid[start + k])
        count += np.int32(valid[start + k])
        total_a += deviation_a
        squares_a += deviation_a * deviation_a
        total_r += deviation_r
        squares_r += deviation_r * deviation_r
    return count, total_a, squares_a, total_r, squares_r


@jit()
def _estimate(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    gamma: float,
    decay: float,
    advantage: Floats,
    start: int,
    stop: int,
    num_envs: int,
) -> None:
    """Write the advantages of steps `start` to `stop`; the last step of the rollout must not be among them."""
    width = U(num_envs)
    if num_envs < _NARROW:
        first, end = U(start) * width, U(stop) * width
        _narrow_rows(reward, value, terminated, truncated, gamma, decay, advantage, first, end, width)
    else:
        for t in range(stop - 1, start - 1, -1):
            _row(reward, value, terminated, truncated, gamma, decay, advantage, U(t) * width, width)


@gae.numba
def _gae_numba(
    num_steps: int,
    num_envs: int,
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    valid: Bools,
    gamma: float,
    gae_lambda: float,
    advantage: Floats,
    return_: Floats,
    moments: Doubles,
) -> None:
    moments[:] = 0.0
    if num_steps == 0 or num_envs == 0:
        return
    width = U(num_envs)
    discount, decay = np.float32(gamma), np.float32(gamma * gae_lambda)
    num_rows = max(1, _STRIP // num_envs)  # this many steps stay in L1
    shift_a: Number = ZERO
    shift_r: Number = ZERO
    _last_row(reward, value, terminated, discount, advantage, U(num_steps - 1) * width, width)
    stop = num_steps
    while stop > 0:
        start, last = max(0, stop - num_rows), min(stop, num_steps - 1)
        _estimate(reward, value, terminated, truncated, discount, decay, advantage, start, last, num_envs)
        for begin in range(start * num_envs, stop * num_envs, _STRIP):
            at, size = U(begin), U(min(_STRIP, stop * num_envs - begin))
            if moments[0] == 0.0:
                first = _first_valid(valid, at, size)
                shift_a, shift_r = advantage[first], advantage[first] + value[first]
                count, total_a, _, total_r, _ = _finish_strip(
                    advantage, value, return_, valid, at, min(size, U(_HEAD)), shift_a, shift_r
                )
                shift_a += np.float32(total_a / max(count, 1))
                shift_r += np.float32(total_r / max(count, 1))
            count, total_a, squares_a, total_r, squares_r = _finish_strip(
                advantage, value, return_, valid, at, size, shift_a, shift_r
            )
            if count > 0:
                shift_a = np.float32(_merge(moments, 1, count, shift_a, total_a, squares_a))
                shift_r = np.float32(_merge(moments, 3, count, shift_r, total_r, squares_r))
                moments[0] += count
        stop = start
