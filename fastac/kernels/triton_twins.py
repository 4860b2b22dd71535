"""The Triton twins of `reference`, for float32 on CUDA: same signatures, same results to rounding.

Each program takes a block of rows (of envs for `gae`) and leaves float64 partial sums, which PyTorch
adds up: no atomics, so that a result does not depend on the order in which programs run. Nothing
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

_Kernel: TypeAlias = Any  # kernel[grid](arguments)
_Pointer: TypeAlias = Any
_Number: TypeAlias = Any
_Block: TypeAlias = Any

_jit: Callable[[Callable[..., Any]], _Kernel] = triton.jit

_NUM_ENVS = 128  # per program of `gae`; few, since each env is one long recursion
_NUM_ROWS = 1024  # per program of `batch_moments`
_NUM_ELEMENTS = 2048  # rows x actions per program of the others

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


def _merge(count: Tensor, mean: Tensor, m2: Tensor) -> Tensor:
    """Merge moments of parts, each `[P]` float64, into `[3]`: count, mean and M2 (Chan et al. 1983)."""
    total = count.sum()
    # Deviations from the mean of a part that is not empty are exactly 0 where all parts are equal.
    shift = mean[count.argmax()]
    deviation = torch.where(count > 0, mean - shift, 0.0)
    offset = (deviation * count).sum() / total.clamp(min=1.0)
    between = (count * (deviation - offset).square()).sum()
    return torch.stack([total, shift + offset, m2.sum() + between])


@_jit
def _mean_m2(count: _Block, total: _Block, squares: _Block, shift: _Block) -> _Block:
    """Turn sums of deviations from `shift` into mean and M2."""
    offset = total / tl.where(count > 0, count, 1.0)
    m2 = squares - total * offset
    return shift + offset, tl.where(m2 < 0.0, 0.0, m2)


@_jit
def _gae(
    reward: _Pointer,
    value: _Pointer,
    terminated: _Pointer,
    truncated: _Pointer,
    valid: _Pointer,
    gamma: _Number,
    decay: _Number,
    advantage: _Pointer,
    return_: _Pointer,
    parts: _Pointer,
    num_steps: _Number,
    num_envs: _Number,
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
    tl.store(parts + env, count, mask=here)
    tl.store(parts + num_envs + env, mean_a, mask=here)
    tl.store(parts + 2 * num_envs + env, m2_a, mask=here)
    tl.store(parts + 3 * num_envs + env, mean_r, mask=here)
    tl.store(parts + 4 * num_envs + env, m2_r, mask=here)


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
    parts = _make_parts(reward, 5, num_envs)
    flags = [flag.view(torch.uint8) for flag in (terminated, truncated, valid)]
    _gae[(_num_programs(num_envs, _NUM_ENVS),)](
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
    count, mean_a, m2_a, mean_r, m2_r = parts.unbind()
    moments[:3] = _merge(count, mean_a, m2_a)
    moments[3:] = _merge(count, mean_r, m2_r)[1:]


@_jit
def _batch_moments(
    advantage: _Pointer, valid: _Pointer, parts: _Pointer, num_rows: _Number, NUM_ROWS: tl.constexpr
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
    moments.copy_(_merge(*parts.unbind(1)))


# ---- categorical ------------------------------------------------------------------------------------


@_jit
def _entropy(shifted: _Block, exps: _Block, total: _Block) -> _Block:
    """Return the entropies; an action of probability 0 adds 0, not 0 times -inf."""
    return tl.log(total) - tl.sum(tl.where(exps > 0.0, exps * shifted, 0.0), axis=1) / total


@_jit
def _sample_categorical(
    logits: _Pointer,
    uniform: _Pointer,
    action: _Pointer,
    log_prob: _Pointer,
    entropy: _Pointer,
    num_rows: _Number,
    num_actions: _Number,
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
    log_prob: _Block, old_log_prob: _Block, effective: _Block, clip_coef: _Number, CLIPS: tl.constexpr
) -> _Block:
    """Return per row: the surrogate, its slope with respect to the log-prob, KL, and 1 where clipped."""
    if CLIPS:
        log_ratio = log_prob - old_log_prob
        ratio = tl.exp(log_ratio)
        low, high = 1.0 - clip_coef, 1.0 + clip_coef
        clipped = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))
        plain, limited = ratio * effective, clipped * effective
        # Autograd's: the gradient of a tie is shared, and clamp passes it on within the range only.
        share = tl.where((clipped == ratio) | (plain < limited), 1.0, tl.where(plain == limited, 0.5, 0.0))
        beyond = tl.where(tl.abs(ratio - 1.0) > clip_coef, 1.0, 0.0)
        result = tl.where(limited < plain, limited, plain), share * plain, ratio - 1.0 - log_ratio, beyond
    else:
        result = log_prob * effective, effective, log_prob * 0.0, log_prob * 0.0
    return result


@_jit
def _store_parts(
    parts: _Pointer,
    counts: _Block,
    surrogate: _Block,
    error: _Block,
    entropy: _Block,
    kl: _Block,
    beyond: _Block,
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
    logits: _Pointer,
    value: _Pointer,
    action: _Pointer,
    old_log_prob: _Pointer,
    advantage: _Pointer,
    return_: _Pointer,
    valid: _Pointer,
    weight: _Number,
    shift: _Number,
    shift_rest: _Number,
    scale: _Number,
    vf_coef: _Number,
    ent_coef: _Number,
    clip_coef: _Number,
    d_logits: _Pointer,
    d_value: _Pointer,
    parts: _Pointer,
    num_rows: _Number,
    num_actions: _Number,
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
    chosen = column == tl.load(action + row, mask=counts, other=0)[:, None]
    log_prob = tl.sum(tl.where(chosen, shifted, 0.0), axis=1) - log_total
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
    terms += inverse_count * parts.sum(dim=0)


@_jit
def _gaussian_loss(
    mean: _Pointer,
    log_std: _Pointer,
    value: _Pointer,
    action: _Pointer,
    old_log_prob: _Pointer,
    advantage: _Pointer,
    return_: _Pointer,
    valid: _Pointer,
    weight: _Number,
    shift: _Number,
    shift_rest: _Number,
    scale: _Number,
    vf_coef: _Number,
    ent_coef: _Number,
    clip_coef: _Number,
    log_2pi: _Number,
    d_mean: _Pointer,
    d_value: _Pointer,
    parts: _Pointer,
    d_log_std_parts: _Pointer,
    num_rows: _Number,
    num_columns: _Number,
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
    entropy = log_prob * 0.0 + (0.5 * num_columns * (1.0 + log_2pi) + log_volume)
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
    terms += inverse_count * parts.sum(dim=0)
    d_log_std += d_log_std_parts.sum(dim=0)
