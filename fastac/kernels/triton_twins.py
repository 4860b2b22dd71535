"""The Triton twins of `reference`, for float32 on CUDA: same signatures, same results to rounding.

Each program takes a block of rows (of envs for `gae`) and leaves float64 partial sums, which are added
up after it: no atomics, so that a result does not depend on the order in which programs run. Nothing
waits for the device and no shape depends on data, so that all of it can be captured in a CUDA graph.

With TRITON_INTERPRET=1 set before Triton is imported, the kernels take CPU tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastac.kernels import reference

_Kernel: TypeAlias = Any  # kernel[grid](arguments)
_Results: TypeAlias = Any  # of a part of kernels: one or several blocks

_jit: Callable[[Callable[..., Any]], _Kernel] = triton.jit

_NUM_ENVS = 128  # per program of `gae`; few, since each env is one long recursion
_NUM_ROWS = 1024  # per program of `batch_moments`
_NUM_ELEMENTS = 1024  # rows x actions per program of the others

_ROW_DTYPES = (torch.float32, torch.bool, torch.int64)


def _check(*tensors: Tensor) -> None:
    """Refuse what a kernel would misread.

    Raises:
        ValueError: a tensor is not contiguous, or not of a dtype that kernels take.
    """
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.dtype not in _ROW_DTYPES:
            raise ValueError(
                f"argument of shape {tuple(tensor.shape)}, {tensor.dtype}, strides {tensor.stride()}: the kernel takes "
                "contiguous ones of float32, bool and int64; convert it, or call the reference."
            )


def _block_shape(num_columns: int) -> tuple[int, int]:
    """Return rows and columns of a program's block, powers of two as Triton wants."""
    columns: int = triton.next_power_of_2(num_columns)
    return max(1, _NUM_ELEMENTS // columns), columns


def _num_programs(size: int, block: int) -> int:
    """Return how many programs there are: at least one, which leaves the sums of nothing."""
    return max(1, -(-size // block))


def _make_parts(like: Tensor, *shape: int) -> Tensor:
    """Make room for the programs' sums."""
    return torch.empty(shape, dtype=torch.float64, device=like.device)


# ---- advantages and moments -------------------------------------------------------------------------


@_jit
def _mean_m2(count: tl.tensor, total: tl.tensor, squares: tl.tensor, shift: tl.tensor) -> _Results:
    """Turn sums of deviations from `shift` into mean and M2."""
    offset = total / tl.where(count > 0, count, 1.0)
    m2 = squares - total * offset
    return shift + offset, tl.where(m2 < 0.0, 0.0, m2)


@_jit
def _merge(count: tl.tensor, mean: tl.tensor, m2: tl.tensor) -> _Results:
    """Merge mean and M2 of parts into those of all (Chan et al. 1983)."""
    total = tl.sum(count, axis=0)
    # Deviations from some part's mean are exactly 0 where all are equal. A NaN shows in the deviations.
    candidate = tl.where((count > 0) & (mean == mean), mean, float("-inf"))
    shift = tl.where(total > 0, tl.max(candidate, axis=0), 0.0)
    deviation = tl.where(count > 0, mean - shift, 0.0)
    offset = tl.sum(deviation * count, axis=0) / tl.where(total > 0, total, 1.0)
    between = count * (deviation - offset) * (deviation - offset)
    return shift + offset, tl.sum(m2 + between, axis=0)


@_jit
def _merge_parts(
    parts: tl.tensor, moments: tl.tensor, num_parts: tl.tensor, PAIRS: tl.constexpr, SIZE: tl.constexpr
) -> None:
    """Merge rows of count and one or two pairs of mean and M2; a single program."""
    at = parts + tl.arange(0, SIZE) * (1 + 2 * PAIRS)
    here = tl.arange(0, SIZE) < num_parts
    count = tl.load(at, mask=here, other=0.0)
    tl.store(moments, tl.sum(count, axis=0))
    for pair in tl.static_range(PAIRS):
        mean = tl.load(at + 1 + 2 * pair, mask=here, other=0.0)
        m2 = tl.load(at + 2 + 2 * pair, mask=here, other=0.0)
        mean, m2 = _merge(count, mean, m2)
        tl.store(moments + 1 + 2 * pair, mean)
        tl.store(moments + 2 + 2 * pair, m2)


def _write_moments(parts: Tensor, moments: Tensor) -> None:
    num_parts, size = parts.shape
    _merge_parts[(1,)](parts, moments, num_parts, PAIRS=size // 2, SIZE=triton.next_power_of_2(num_parts))


@_jit
def _gae(
    reward: tl.tensor,
    value: tl.tensor,
    terminated: tl.tensor,
    truncated: tl.tensor,
    valid: tl.tensor,
    gamma: tl.tensor,
    decay: tl.tensor,
    advantage: tl.tensor,
    return_: tl.tensor,
    parts: tl.tensor,
    num_steps: tl.tensor,
    num_envs: tl.tensor,
    NUM_ENVS: tl.constexpr,
) -> None:
    env = tl.program_id(0) * NUM_ENVS + tl.arange(0, NUM_ENVS)
    here = env < num_envs
    following = tl.zeros([NUM_ENVS], tl.float32)  # advantage of row t+1
    next_value = tl.load(value + num_steps * num_envs + env, mask=here, other=0.0)
    # Of each env: rows so far, first number, sum of deviations from it and of their squares.
    count = tl.zeros([NUM_ENVS], tl.float64)
    shift_a = tl.zeros([NUM_ENVS], tl.float64)
    total_a = tl.zeros([NUM_ENVS], tl.float64)
    squares_a = tl.zeros([NUM_ENVS], tl.float64)
    shift_r = tl.zeros([NUM_ENVS], tl.float64)
    total_r = tl.zeros([NUM_ENVS], tl.float64)
    squares_r = tl.zeros([NUM_ENVS], tl.float64)
    for k in range(num_steps):
        row = (num_steps - 1 - k) * num_envs + env
        ends = tl.load(terminated + row, mask=here, other=0) != 0
        done = ends | (tl.load(truncated + row, mask=here, other=0) != 0)
        counts = tl.load(valid + row, mask=here, other=0) != 0
        this_value = tl.load(value + row, mask=here, other=0.0)
        bootstrap = tl.where(ends, 0.0, next_value)
        carried = tl.where(done, 0.0, following)
        delta = tl.load(reward + row, mask=here, other=0.0) + gamma * bootstrap - this_value
        following = delta + decay * carried
        estimate = following + this_value
        next_value = this_value
        tl.store(advantage + row, following, mask=here)
        tl.store(return_ + row, estimate, mask=here)

        first = counts & (count == 0.0)
        shift_a = tl.where(first, following.to(tl.float64), shift_a)
        shift_r = tl.where(first, estimate.to(tl.float64), shift_r)
        deviation_a = tl.where(counts, following.to(tl.float64) - shift_a, 0.0)
        deviation_r = tl.where(counts, estimate.to(tl.float64) - shift_r, 0.0)
        count += counts.to(tl.float64)
        total_a += deviation_a
        squares_a += deviation_a * deviation_a
        total_r += deviation_r
        squares_r += deviation_r * deviation_r
    mean_a, m2_a = _mean_m2(count, total_a, squares_a, shift_a)
    mean_r, m2_r = _mean_m2(count, total_r, squares_r, shift_r)
    mean_a, m2_a = _merge(count, mean_a, m2_a)
    mean_r, m2_r = _merge(count, mean_r, m2_r)
    at = parts + tl.program_id(0) * 5
    tl.store(at, tl.sum(count, axis=0))
    tl.store(at + 1, mean_a)
    tl.store(at + 2, m2_a)
    tl.store(at + 3, mean_r)
    tl.store(at + 4, m2_r)


def gae(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    gamma: float,
    gae_lambda: float,
    advantage: Tensor,
    return_: Tensor,
    moments: Tensor,
) -> None:
    """See `reference.gae`."""
    _check(reward, value, terminated, truncated, valid, advantage, return_)
    num_steps, num_envs = reward.shape
    num_programs = _num_programs(num_envs, _NUM_ENVS)
    parts = _make_parts(reward, num_programs, 5)
    flags = [flag.view(torch.uint8) for flag in (terminated, truncated, valid)]
    _gae[(num_programs,)](
        reward,
        value,
        *flags,
        gamma,
        gamma * gae_lambda,
        advantage,
        return_,
        parts,
        num_steps,
        num_envs,
        NUM_ENVS=_NUM_ENVS,
    )
    _write_moments(parts, moments)


@_jit
def _batch_moments(
    advantage: tl.tensor, valid: tl.tensor, parts: tl.tensor, num_rows: tl.tensor, NUM_ROWS: tl.constexpr
) -> None:
    program = tl.program_id(0)
    row = program * NUM_ROWS + tl.arange(0, NUM_ROWS)
    here = row < num_rows
    counts = tl.load(valid + row, mask=here, other=0) != 0
    number = tl.load(advantage + row, mask=here, other=0.0).to(tl.float64)
    first = tl.min(tl.where(counts, row, num_rows), axis=0)
    shift = tl.sum(tl.where(row == first, number, 0.0), axis=0)
    deviation = tl.where(counts, number - shift, 0.0)
    count = tl.sum(counts.to(tl.float64), axis=0)
    squares = tl.sum(deviation * deviation, axis=0)
    mean, m2 = _mean_m2(count, tl.sum(deviation, axis=0), squares, shift)
    tl.store(parts + program * 3, count)
    tl.store(parts + program * 3 + 1, mean)
    tl.store(parts + program * 3 + 2, m2)


def batch_moments(advantage: Tensor, valid: Tensor, moments: Tensor) -> None:
    """See `reference.batch_moments`."""
    _check(advantage, valid)
    size = advantage.numel()
    num_programs = _num_programs(size, _NUM_ROWS)
    parts = _make_parts(advantage, num_programs, 3)
    _batch_moments[(num_programs,)](advantage, valid.view(torch.uint8), parts, size, NUM_ROWS=_NUM_ROWS)
    _write_moments(parts, moments)


# ---- categorical ------------------------------------------------------------------------------------


@_jit
def _entropy(shifted: tl.tensor, exps: tl.tensor, total: tl.tensor) -> _Results:
    """Return the entropies; an action of probability 0 adds 0, not 0 times -inf."""
    return tl.log(total) - tl.sum(exps * tl.where(exps > 0.0, shifted, 0.0), axis=1) / total


@_jit
def _sample_categorical(
    logits: tl.tensor,
    uniform: tl.tensor,
    action: tl.tensor,
    log_prob: tl.tensor,
    entropy: tl.tensor,
    num_rows: tl.tensor,
    num_actions: tl.tensor,
    NUM_ROWS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * NUM_ROWS + tl.arange(0, NUM_ROWS)
    column = tl.arange(0, NUM_COLUMNS)[None, :]
    here = row < num_rows
    exists = here[:, None] & (column < num_actions)
    logit = tl.load(logits + row[:, None] * num_actions + column, mask=exists, other=float("-inf"))
    logit = tl.where(here[:, None], logit, 0.0)
    shifted = logit - tl.max(logit, axis=1)[:, None]
    exps = tl.exp(shifted)
    total = tl.sum(exps, axis=1)
    cdf = tl.cumsum(exps / total[:, None], axis=1)
    threshold = tl.load(uniform + row, mask=here, other=0.0)
    # The last entry is left out: rounding may leave it just below a uniform close to 1.
    below = (cdf <= threshold[:, None]) & (column < num_actions - 1)
    picked = tl.sum(below.to(tl.int32), axis=1)
    of_action = tl.sum(tl.where(column == picked[:, None], shifted, 0.0), axis=1)
    tl.store(action + row, picked.to(tl.int64), mask=here)
    tl.store(log_prob + row, of_action - tl.log(total), mask=here)
    tl.store(entropy + row, _entropy(shifted, exps, total), mask=here)


def sample_categorical(logits: Tensor, uniform: Tensor, action: Tensor, log_prob: Tensor, entropy: Tensor) -> None:
    """See `reference.sample_categorical`."""
    _check(logits, uniform, action, log_prob, entropy)
    num_rows, num_actions = logits.shape
    rows, columns = _block_shape(num_actions)
    _sample_categorical[(_num_programs(num_rows, rows),)](
        logits, uniform, action, log_prob, entropy, num_rows, num_actions, NUM_ROWS=rows, NUM_COLUMNS=columns
    )


# ---- losses -----------------------------------------------------------------------------------------


@_jit
def _surrogate(
    log_prob: tl.tensor, old_log_prob: tl.tensor, effective: tl.tensor, clip_coef: tl.tensor, CLIPS: tl.constexpr
) -> _Results:
    """Return per row: the surrogate, its slope with respect to the log-prob, KL, and 1 where clipped."""
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
        # Autograd's: the gradient of a tie is shared, and clamp passes it on within the range only.
        share = tl.where((clipped == ratio) | (plain < limited), 1.0, tl.where(plain == limited, 0.5, 0.0))
        surrogate, slope = tl.where(limited < plain, limited, plain), share * plain
        kl = ratio - 1.0 - log_ratio
        beyond = tl.where(tl.abs(ratio - 1.0) > clip_coef, 1.0, 0.0)
    return surrogate, slope, kl, beyond


@_jit
def _store_parts(
    parts: tl.tensor,
    counts: tl.tensor,
    surrogate: tl.tensor,
    error: tl.tensor,
    entropy: tl.tensor,
    kl: tl.tensor,
    beyond: tl.tensor,
) -> None:
    """Leave the program's sums of the five terms over valid rows."""
    at = parts + tl.program_id(0) * 5
    tl.store(at, tl.sum(tl.where(counts, -surrogate, 0.0).to(tl.float64), axis=0))
    tl.store(at + 1, tl.sum((error * error).to(tl.float64), axis=0))
    tl.store(at + 2, tl.sum(tl.where(counts, entropy, 0.0).to(tl.float64), axis=0))
    tl.store(at + 3, tl.sum(tl.where(counts, kl, 0.0).to(tl.float64), axis=0))
    tl.store(at + 4, tl.sum(tl.where(counts, beyond, 0.0).to(tl.float64), axis=0))


@_jit
def _categorical_loss(
    logits: tl.tensor,
    value: tl.tensor,
    action: tl.tensor,
    old_log_prob: tl.tensor,
    advantage: tl.tensor,
    return_: tl.tensor,
    valid: tl.tensor,
    weight: tl.tensor,
    shift: tl.tensor,
    shift_rest: tl.tensor,
    scale: tl.tensor,
    vf_coef: tl.tensor,
    ent_coef: tl.tensor,
    clip_coef: tl.tensor,
    d_logits: tl.tensor,
    d_value: tl.tensor,
    parts: tl.tensor,
    num_rows: tl.tensor,
    num_actions: tl.tensor,
    CLIPS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * NUM_ROWS + tl.arange(0, NUM_ROWS)
    column = tl.arange(0, NUM_COLUMNS)[None, :]
    here = row < num_rows
    counts = tl.load(valid + row, mask=here, other=0) != 0
    exists = counts[:, None] & (column < num_actions)
    at = row[:, None] * num_actions + column
    logit = tl.load(logits + at, mask=exists, other=float("-inf"))
    logit = tl.where(counts[:, None], logit, 0.0)
    shifted = logit - tl.max(logit, axis=1)[:, None]
    exps = tl.exp(shifted)
    total = tl.sum(exps, axis=1)
    log_total = tl.log(total)
    entropy = _entropy(shifted, exps, total)
    taken = tl.load(action + row, mask=counts, other=0)
    chosen = column == taken[:, None]
    log_prob = tl.sum(tl.where(chosen, shifted, 0.0), axis=1) - log_total
    log_prob = tl.where((taken >= 0) & (taken < num_actions), log_prob, float("nan"))  # no such action
    advantages = tl.load(advantage + row, mask=counts, other=0.0)
    effective = ((advantages - shift) - shift_rest) * scale
    old = tl.load(old_log_prob + row, mask=counts, other=0.0)
    surrogate, slope, kl, beyond = _surrogate(log_prob, old, effective, clip_coef, CLIPS)
    error = tl.load(value + row, mask=counts, other=0.0) - tl.load(return_ + row, mask=counts, other=0.0)
    tl.store(d_value + row, 2.0 * vf_coef * weight * error, mask=here)
    _store_parts(parts, counts, surrogate, error, entropy, kl, beyond)

    probability = exps / total[:, None]
    bend = probability * (shifted - log_total[:, None] + entropy[:, None])  # minus d entropy / d logit
    bend = tl.where(probability > 0.0, bend, 0.0)
    gradient = ent_coef * bend - slope[:, None] * (tl.where(chosen, 1.0, 0.0) - probability)
    gradient = tl.where(counts[:, None], weight * gradient, 0.0)
    tl.store(d_logits + at, gradient, mask=here[:, None] & (column < num_actions))


def _split(number: float) -> tuple[float, float]:
    """Split a float64 into two float32, which is what Triton makes of numbers: the rounded, and the rest."""
    rounded = float(np.float32(number))
    return rounded, number - rounded


def categorical_loss(
    logits: Tensor,
    value: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    return_: Tensor,
    valid: Tensor,
    inverse_count: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float | None,
    d_logits: Tensor,
    d_value: Tensor,
    terms: Tensor,
) -> None:
    """See `reference.categorical_loss`."""
    rows = logits, value, action, old_log_prob, advantage, return_
    _check(*rows, valid, d_logits, d_value)
    num_rows, num_actions = logits.shape
    block_rows, block_columns = _block_shape(num_actions)
    num_programs = _num_programs(num_rows, block_rows)
    parts = _make_parts(logits, num_programs, 5)
    numbers = inverse_count, *_split(shift), scale, vf_coef, ent_coef, clip_coef or 0.0
    _categorical_loss[(num_programs,)](
        *rows,
        valid.view(torch.uint8),
        *numbers,
        d_logits,
        d_value,
        parts,
        num_rows,
        num_actions,
        CLIPS=clip_coef is not None,
        NUM_ROWS=block_rows,
        NUM_COLUMNS=block_columns,
    )
    terms.add_(parts.sum(dim=0), alpha=inverse_count)


@_jit
def _gaussian_loss(
    mean: tl.tensor,
    log_std: tl.tensor,
    value: tl.tensor,
    action: tl.tensor,
    old_log_prob: tl.tensor,
    advantage: tl.tensor,
    return_: tl.tensor,
    valid: tl.tensor,
    weight: tl.tensor,
    shift: tl.tensor,
    shift_rest: tl.tensor,
    scale: tl.tensor,
    vf_coef: tl.tensor,
    ent_coef: tl.tensor,
    clip_coef: tl.tensor,
    log_2pi: tl.tensor,
    d_mean: tl.tensor,
    d_value: tl.tensor,
    parts: tl.tensor,
    d_log_std_parts: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    CLIPS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    row = program * NUM_ROWS + tl.arange(0, NUM_ROWS)
    column = tl.arange(0, NUM_COLUMNS)
    here = row < num_rows
    counts = tl.load(valid + row, mask=here, other=0) != 0
    exists = counts[:, None] & (column < num_columns)[None, :]
    at = row[:, None] * num_columns + column[None, :]
    log_stds = tl.load(log_std + column, mask=column < num_columns, other=0.0)
    inverse_std = tl.exp(-log_stds)[None, :]
    deviation = tl.load(action + at, mask=exists, other=0.0) - tl.load(mean + at, mask=exists, other=0.0)
    z = deviation * inverse_std
    log_volume = tl.sum(log_stds, axis=0)
    log_prob = -0.5 * (tl.sum(z * z, axis=1) + num_columns * log_2pi) - log_volume
    entropy = tl.zeros_like(log_prob) + (0.5 * num_columns * (1.0 + log_2pi) + log_volume)
    advantages = tl.load(advantage + row, mask=counts, other=0.0)
    effective = ((advantages - shift) - shift_rest) * scale
    old = tl.load(old_log_prob + row, mask=counts, other=0.0)
    surrogate, slope, kl, beyond = _surrogate(log_prob, old, effective, clip_coef, CLIPS)
    error = tl.load(value + row, mask=counts, other=0.0) - tl.load(return_ + row, mask=counts, other=0.0)
    tl.store(d_value + row, 2.0 * vf_coef * weight * error, mask=here)
    _store_parts(parts, counts, surrogate, error, entropy, kl, beyond)

    slope = tl.where(counts, -weight * slope, 0.0)[:, None]
    tl.store(d_mean + at, slope * z * inverse_std, mask=here[:, None] & (column < num_columns)[None, :])
    of_entropy = tl.where(counts, ent_coef * weight, 0.0)[:, None]
    d_log_std = tl.sum((slope * (z * z - 1.0) - of_entropy).to(tl.float64), axis=0)
    tl.store(d_log_std_parts + program * num_columns + column, d_log_std, mask=column < num_columns)


def gaussian_loss(
    mean: Tensor,
    log_std: Tensor,
    value: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    return_: Tensor,
    valid: Tensor,
    inverse_count: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float | None,
    d_mean: Tensor,
    d_log_std: Tensor,
    d_value: Tensor,
    terms: Tensor,
) -> None:
    """See `reference.gaussian_loss`."""
    rows = mean, log_std, value, action, old_log_prob, advantage, return_
    _check(*rows, valid, d_mean, d_log_std, d_value)
    num_rows, num_columns = mean.shape
    block_rows, block_columns = _block_shape(num_columns)
    num_programs = _num_programs(num_rows, block_rows)
    parts = _make_parts(mean, num_programs, 5)
    d_log_std_parts = _make_parts(mean, num_programs, num_columns)
    numbers = inverse_count, *_split(shift), scale, vf_coef, ent_coef, clip_coef or 0.0
    _gaussian_loss[(num_programs,)](
        *rows,
        valid.view(torch.uint8),
        *numbers,
        math.log(2.0 * math.pi),
        d_mean,
        d_value,
        parts,
        d_log_std_parts,
        num_rows,
        num_columns,
        CLIPS=clip_coef is not None,
        NUM_ROWS=block_rows,
        NUM_COLUMNS=block_columns,
    )
    terms.add_(parts.sum(dim=0), alpha=inverse_count)
    d_log_std += d_log_std_parts.sum(dim=0)


# ---- images, optimiser steps ------------------------------------------------------------------------

# A handful of torch's own elementwise kernels: nothing that a kernel of ours would be seen to save.
scale_images = reference.scale_images
adam_step = reference.adam_step
rmsprop_step = reference.rmsprop_step
