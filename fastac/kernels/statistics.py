"""Moments over rows in float64, for running normalisation."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import Bools, Doubles, Floats, Number, U, jit


@kernel("M D")
def column_moments(
    rows: Annotated[Tensor, "float32 M D"],
    valid: Annotated[Tensor, "bool M"],
    moments: Annotated[Tensor, "float64 1+2*D"],
) -> None:
    """Write the number of valid rows, and mean and variance (of the population) of each of their columns.

    Args:
        rows: any numbers.
        valid: rows that count.
        moments: written: the number, D means, D variances; zeros if no row counts.
    """
    moments.zero_()
    chosen = rows[valid].double()
    if len(chosen):
        moments.copy_(
            torch.cat([moments.new_tensor([len(chosen)]), chosen.mean(dim=0), chosen.var(dim=0, correction=0)])
        )


@kernel("T N")
def discounted_moments(
    reward: Annotated[Tensor, "float32 T N"],
    valid: Annotated[Tensor, "bool T N"],
    done: Annotated[Tensor, "bool T N"],
    gamma: float,
    running: Annotated[Tensor, "float64 N"],
    moments: Annotated[Tensor, "float64 3"],
) -> None:
    """Go on with the discounted sum of rewards so far of every environment, and write its moments over valid rows.

    The sum of row t is `reward[t] + gamma * ` that of row t-1; it starts anew after `done`.

    Args:
        reward: rewards.
        valid: rows that count in the moments.
        done: rows that end an episode.
        gamma: discount factor.
        running: the sums after the last row of the previous rollout; updated.
        moments: written: the number of valid rows, mean and variance (of the population); zeros if none is valid.
    """
    sums = torch.empty(reward.shape, dtype=torch.float64)
    for t, row in enumerate(reward):
        running.mul_(gamma).add_(row)
        sums[t] = running
        running.masked_fill_(done[t], 0.0)
    chosen = sums[valid]
    moments.zero_()
    if len(chosen):
        moments.copy_(torch.stack([torch.tensor(float(len(chosen))), chosen.mean(), chosen.var(correction=0)]))


# ---- Numba ------------------------------------------------------------------------------------------


@jit()
def _add_rows(rows: Floats, valid: Bools, num_rows: int, width: int, sums: Doubles) -> Number:
    """Add the valid rows to `sums`; return their number."""
    count = 0
    for row in range(num_rows):
        if valid[row]:
            count += 1
            for k in range(width):
                sums[k] += rows[row * width + k]
    return count


@jit()
def _add_squares(rows: Floats, valid: Bools, num_rows: int, width: int, mean: Doubles, sums: Doubles) -> None:
    """Add the squares of the valid rows' deviations from `mean` to `sums`."""
    for row in range(num_rows):
        if valid[row]:
            for k in range(width):
                deviation = rows[row * width + k] - mean[k]
                sums[k] += deviation * deviation


@column_moments.numba
def _column_moments_numba(num_rows: int, num_columns: int, rows: Floats, valid: Bools, moments: Doubles) -> None:
    moments[: 1 + 2 * num_columns] = 0.0
    mean, var = moments[1 : 1 + num_columns], moments[1 + num_columns :]
    count = _add_rows(rows, valid, U(num_rows), U(num_columns), mean)
    if count > 0:
        moments[0] = count
        for k in range(U(num_columns)):
            mean[k] /= count
        _add_squares(rows, valid, U(num_rows), U(num_columns), mean, var)
        for k in range(U(num_columns)):
            var[k] /= count


@discounted_moments.numba
def _discounted_moments_numba(
    num_steps: int,
    num_envs: int,
    reward: Floats,
    valid: Bools,
    done: Bools,
    gamma: float,
    running: Doubles,
    moments: Doubles,
) -> None:
    sums = np.empty(num_steps * num_envs)
    count, total, squares = 0, 0.0, 0.0
    for t in range(num_steps):
        for n in range(num_envs):
            k = t * num_envs + n
            sums[k] = running[n] = running[n] * gamma + reward[k]
            if valid[k]:
                count += 1
                total += sums[k]
            if done[k]:
                running[n] = 0.0
    mean = total / max(count, 1)
    for k in range(num_steps * num_envs):
        if valid[k]:
            squares += (sums[k] - mean) * (sums[k] - mean)
    moments[0], moments[1], moments[2] = count, mean, squares / max(count, 1)
