"""Parts shared by the losses of all heads: the policy surrogate, the value loss, and the five terms.

Every loss kernel takes these arrays, one element per row `[M]`; all are constant except `value`:

- `value`: the critic's estimates;
- `old_log_prob`: log-probs of the actions under the policy that collected them; only the clipped surrogate reads it;
- `old_value`: the critic's estimates while acting; read only if values are clipped;
- `advantage`: the advantage used is (advantage - shift) * scale;
- `return_`: the critic's target;
- `valid`: rows that are not valid may hold anything; a NaN in a valid row shows up in `terms`.

It takes these numbers:

- `surrogate`: the policy loss, see `Surrogate`;
- `inverse_count`: 1 / number of valid rows in the whole batch, the weight of a row;
- `shift`, `scale`: mean and inverse deviation of the advantage if it is normalised, else 0 and 1;
- `vf_coef`, `ent_coef`: weights of the value loss and of the entropy;
- `clip_coef`: the clipping range, for the clipped surrogate;
- `clip_value_coef`: how far a value may move from the old one before its loss is clipped; infinity does not clip.

It writes to `d_value` the gradient of total = policy_loss + vf_coef * value_loss - ent_coef * entropy, 0 in rows that
are not valid. It adds policy_loss, value_loss, entropy, approx_kl and clip_fraction to `terms`, so a batch may be
processed in chunks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.numba_tools import HALF, ONE, SUMS, ZERO, Bools, Doubles, Floats, Number, exp, jit
from fastac.kernels.row_blocks import LOG_PROB, SLOPE
from fastac.kernels.specification import Real
from fastac.kernels.triton_tools import Results, triton_jit

if TYPE_CHECKING:
    import triton.language as tl

# A2C and REINFORCE use the policy gradient, PPO the clipped ratio.
Surrogate: TypeAlias = Literal["policy_gradient", "clipped"]
CLIPPED = get_args(Surrogate).index("clipped")  # as compiled code sees it


def compute_surrogate(
    surrogate: Surrogate, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_coef: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return per row `[M]`: the policy loss, Schulman's k3 estimate of the KL divergence, and whether it is clipped."""
    if surrogate == "policy_gradient":
        zero = torch.zeros_like(log_prob)
        return -log_prob * advantage, zero, zero
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    return loss, ratio - 1.0 - log_ratio, ((ratio - 1.0).abs() > clip_coef).to(log_prob.dtype)


def compute_value_loss(value: Tensor, return_: Tensor, old_value: Tensor, clip_value_coef: float) -> Tensor:
    """Return per row `[M]`: the squared error, or the larger one of that and the clipped value's."""
    error = (value - return_).square()
    if math.isinf(clip_value_coef):
        return error
    clipped = old_value + (value - old_value).clamp(-clip_value_coef, clip_value_coef)
    return torch.maximum(error, (clipped - return_).square())


def compute_terms(
    surrogate: Surrogate,
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    old_log_prob: Tensor,
    old_value: Tensor,
    advantage: Tensor,
    return_: Tensor,
    inverse_count: float,
    shift: float,
    scale: float,
    clip_coef: float,
    clip_value_coef: float,
) -> Tensor:
    """Return the terms `[5]` of rows `[M]`, all of them valid."""
    effective = ((advantage.double() - shift) * scale).to(advantage.dtype)  # [M]
    policy_loss, approx_kl, clipped = compute_surrogate(surrogate, log_prob, old_log_prob, effective, clip_coef)
    value_loss = compute_value_loss(value, return_, old_value, clip_value_coef)
    rows = torch.stack([policy_loss, value_loss, entropy, approx_kl.detach(), clipped])  # [5, M]
    return rows.sum(dim=1) * inverse_count


def differentiate(
    added: Tensor, vf_coef: Real, ent_coef: Real, leaves: tuple[Tensor, ...], terms: Tensor
) -> tuple[Tensor, ...]:
    """Add to `terms` `[5]`; return the gradients of the total with respect to `leaves`."""
    terms += added.detach()
    total = added[0] + float(vf_coef) * added[1] - float(ent_coef) * added[2]
    return torch.autograd.grad(total, leaves)


# ---- Numba ------------------------------------------------------------------------------------------


@jit(SUMS)
def _policy_gradient(
    row: Floats, advantage: Floats, valid: Bools, start: int, size: int, weight: float, shift: float, scale: float
) -> Number:
    """Fill in the slopes of -log_prob * advantage; return its sum."""
    total = ZERO
    for n in range(size):
        # float64, because scaling would magnify the float32 rounding error of nearly equal advantages.
        scaled = np.float32((np.float64(advantage[start + n]) - shift) * scale)
        effective = scaled if valid[start + n] else ZERO
        row[SLOPE, n] = -effective * weight
        total -= row[LOG_PROB, n] * effective
    return total


@jit()
def _divergence(ratio: float, log_ratio: float) -> Number:
    """Return Schulman's k3. Separate function so that LLVM cannot reassociate its terms, which nearly cancel."""
    return ratio - ONE - log_ratio


@jit(SUMS)
def _clipped_surrogate(
    row: Floats,
    old_log_prob: Floats,
    advantage: Floats,
    valid: Bools,
    start: int,
    size: int,
    weight: float,
    shift: float,
    scale: float,
    clip_coef: float,
) -> Number:
    """Fill in the slopes of PPO's surrogate; return the sums of surrogate, KL and clipped rows."""
    low, high = np.float32(1.0 - clip_coef), np.float32(1.0 + clip_coef)
    total, kl, beyond = ZERO, ZERO, ZERO
    for n in range(size):
        scaled = np.float32((np.float64(advantage[start + n]) - shift) * scale)
        effective = scaled if valid[start + n] else ZERO
        difference = row[LOG_PROB, n] - old_log_prob[start + n]
        log_ratio = difference if valid[start + n] else ZERO
        ratio = exp(log_ratio)
        clipped = low if ratio < low else (high if ratio > high else ratio)
        plain, limited = ratio * effective, clipped * effective
        total -= limited if limited < plain else plain
        # As in autograd: a tie shares the gradient, and clamp passes it on only inside the range.
        inside = clipped == ratio
        share = ONE if inside or plain < limited else (HALF if plain == limited else ZERO)
        row[SLOPE, n] = -share * plain * weight
        kl += _divergence(ratio, log_ratio)
        beyond += ONE if abs(ratio - ONE) > clip_coef else ZERO
    return total, kl, beyond


@jit(SUMS)
def _value_loss(
    value: Floats, return_: Floats, valid: Bools, d_value: Floats, start: int, size: int, slope: float
) -> Number:
    """Fill in the gradient of the squared error times `slope` / 2; return the sum of squares."""
    total = ZERO
    for n in range(size):
        difference = value[start + n] - return_[start + n]
        error = difference if valid[start + n] else ZERO
        d_value[start + n] = slope * error
        total += error * error
    return total


@jit(SUMS)
def _clipped_value_loss(
    value: Floats,
    old_value: Floats,
    return_: Floats,
    valid: Bools,
    d_value: Floats,
    start: int,
    size: int,
    slope: float,
    clip_coef: float,
) -> Number:
    """As `_value_loss`, for the larger one of the error and that of the clipped value."""
    total = ZERO
    for n in range(size):
        plain, limited, inside = _value_errors(value[start + n], old_value[start + n], return_[start + n], clip_coef)
        counts = valid[start + n]
        plain, limited = plain if counts else ZERO, limited if counts else ZERO
        square, other = plain * plain, limited * limited
        # As in autograd: a tie shares the gradient, and clamp passes it on only inside the range.
        share = ONE if square > other else (HALF if square == other else ZERO)
        d_value[start + n] = slope * (share * plain + ((ONE - share) * limited if inside else ZERO))
        total += square if square > other else other
    return total


@jit()
def _value_errors(value: float, old_value: float, return_: float, clip_coef: float) -> tuple[float, float, bool]:
    """Return the error, that of the clipped value, and whether the value is within the range.

    Separate function so that LLVM cannot reassociate its terms, which nearly cancel.
    """
    moved = value - old_value
    inside = not abs(moved) > clip_coef  # also NaN, which then shows up
    clipped = old_value + (moved if inside else (clip_coef if moved > ZERO else -clip_coef))
    return value - return_, clipped - return_, inside


@jit(SUMS)
def rows_loss(
    row: Floats,
    value: Floats,
    old_log_prob: Floats,
    old_value: Floats,
    advantage: Floats,
    return_: Floats,
    valid: Bools,
    start: int,
    size: int,
    surrogate: int,
    inverse_count: float,
    shift: float,
    scale: float,
    vf_coef: float,
    clip_coef: float,
    clip_value_coef: float,
    d_value: Floats,
    sums: Doubles,
) -> None:
    """Compute the parts common to all heads, from log-probs to slopes in `row`; add to `sums`."""
    if surrogate == CLIPPED:
        policy, kl, beyond = _clipped_surrogate(
            row,
            old_log_prob,
            advantage,
            valid,
            start,
            size,
            np.float32(inverse_count),
            shift,
            scale,
            np.float32(clip_coef),
        )
        sums[0] += policy
        sums[3] += kl
        sums[4] += beyond
    else:
        sums[0] += _policy_gradient(row, advantage, valid, start, size, np.float32(inverse_count), shift, scale)
    slope = np.float32(2.0 * vf_coef * inverse_count)
    if clip_value_coef < np.inf:
        limit = np.float32(clip_value_coef)
        sums[1] += _clipped_value_loss(value, old_value, return_, valid, d_value, start, size, slope, limit)
    else:
        sums[1] += _value_loss(value, return_, valid, d_value, start, size, slope)


# ---- Triton -----------------------------------------------------------------------------------------


@triton_jit
def surrogate_triton(
    log_prob: tl.tensor, old_log_prob: tl.tensor, effective: tl.tensor, clip_coef: tl.tensor, CLIPS: tl.constexpr
) -> Results:
    """Return per row: the surrogate, its slope with respect to the log-prob, KL, and 1 if clipped."""
    surrogate, slope = log_prob * effective, effective
    kl = tl.zeros_like(log_prob)
    beyond = tl.zeros_like(log_prob)
    if CLIPS:
        log_ratio = log_prob - old_log_prob
        ratio = tl.exp(log_ratio)
        low = 1.0 - clip_coef
        high = 1.0 + clip_coef
        clipped = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))
        plain, limited = ratio * effective, clipped * effective
        # As in autograd: a tie shares the gradient, and clamp passes it on only inside the range.
        share = tl.where((clipped == ratio) | (plain < limited), 1.0, tl.where(plain == limited, 0.5, 0.0))
        surrogate, slope = tl.where(limited < plain, limited, plain), share * plain
        kl = ratio - 1.0 - log_ratio
        beyond = tl.where(tl.abs(ratio - 1.0) > clip_coef, 1.0, 0.0)
    return surrogate, slope, kl, beyond


@triton_jit
def value_loss_triton(
    value: tl.tensor,
    old_value: tl.tensor,
    return_: tl.tensor,
    row: tl.tensor,
    counts: tl.tensor,
    clip_coef: tl.tensor,
    CLIPS: tl.constexpr,
) -> Results:
    """Return per row: the squared error of the value, and half its slope."""
    found = tl.load(value + row, mask=counts, other=0.0)
    target = tl.load(return_ + row, mask=counts, other=0.0)
    slope = found - target
    square = slope * slope
    if CLIPS:
        old = tl.load(old_value + row, mask=counts, other=0.0)
        moved = found - old
        beyond = tl.abs(moved) > clip_coef  # not NaN, which then shows up
        limited = old + tl.where(beyond, tl.where(moved > 0.0, clip_coef, -clip_coef), moved) - target
        other = limited * limited
        # As in autograd: a tie shares the gradient, and clamp passes it on only inside the range.
        share = tl.where(square > other, 1.0, tl.where(square == other, 0.5, 0.0))
        slope = share * slope + tl.where(beyond, 0.0, (1.0 - share) * limited)
        square = tl.where(square > other, square, other)
    return square, slope


@triton_jit
def store_parts(
    parts: tl.tensor,
    counts: tl.tensor,
    surrogate: tl.tensor,
    square: tl.tensor,
    entropy: tl.tensor,
    kl: tl.tensor,
    beyond: tl.tensor,
) -> None:
    """Store the program's sums of the five terms over valid rows."""
    at = parts + tl.program_id(0) * 5
    tl.store(at, tl.sum(tl.where(counts, -surrogate, 0.0).to(tl.float64), axis=0))
    tl.store(at + 1, tl.sum(square.to(tl.float64), axis=0))
    tl.store(at + 2, tl.sum(tl.where(counts, entropy, 0.0).to(tl.float64), axis=0))
    tl.store(at + 3, tl.sum(tl.where(counts, kl, 0.0).to(tl.float64), axis=0))
    tl.store(at + 4, tl.sum(tl.where(counts, beyond, 0.0).to(tl.float64), axis=0))
