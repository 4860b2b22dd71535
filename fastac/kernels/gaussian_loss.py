"""The loss of diagonal Gaussian actions and its gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.losses import (
    CLIPPED,
    Surrogate,
    compute_terms,
    differentiate,
    rows_loss,
    store_parts,
    surrogate_triton,
    value_loss_triton,
)
from fastac.kernels.numba_tools import FUSED, HALF, SUMS, ZERO, Bools, Doubles, Floats, U, jit
from fastac.kernels.row_blocks import BLOCK, LOG_PROB, NUM_SCRATCH, SLOPE, blank_block, load_block, store_block
from fastac.kernels.specification import Real
from fastac.kernels.triton_tools import block_shape, count_programs, make_parts, split, triton_jit

if TYPE_CHECKING:
    import triton.language as tl

_LOG_2PI = math.log(2.0 * math.pi)


@kernel("M A", is_step=True)
def gaussian_loss(
    mean: Annotated[Tensor, "float32 M A"],
    log_std: Annotated[Tensor, "float32 A"],
    value: Annotated[Tensor, "float32 M"],
    action: Annotated[Tensor, "float32 M A"],
    old_log_prob: Annotated[Tensor, "float32 M"],
    old_value: Annotated[Tensor, "float32 M"],
    advantage: Annotated[Tensor, "float32 M"],
    return_: Annotated[Tensor, "float32 M"],
    valid: Annotated[Tensor, "bool M"],
    surrogate: Surrogate,
    inverse_count: Real,
    shift: Real,
    scale: Real,
    vf_coef: Real,
    ent_coef: Real,
    clip_coef: Real,
    clip_value_coef: float,
    d_mean: Annotated[Tensor, "float32 M A"],
    d_log_std: Annotated[Tensor, "float32 A"],
    d_value: Annotated[Tensor, "float32 M"],
    terms: Annotated[Tensor, "float64 5"],
) -> None:
    """Compute the loss of Gaussian actions and its gradient; arguments are described in `fastac.kernels.losses`.

    All rows share the standard deviations exp(`log_std`). `d_mean` is written: 0 in rows that are not valid.
    `d_log_std` is added to.
    """
    d_mean.zero_()
    d_value.zero_()
    with torch.enable_grad():
        inputs = mean[valid], log_std, value[valid]
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
        z = (action[valid] - leaves[0]) * (-leaves[1]).exp()  # [M, A]
        log_prob = (-0.5 * (z.square() + _LOG_2PI) - leaves[1]).sum(dim=-1)  # [M]
        entropy = (0.5 * (1.0 + _LOG_2PI) + leaves[1]).sum().expand(log_prob.shape)  # [M]
        constants = old_log_prob[valid], old_value[valid], advantage[valid], return_[valid]
        numbers = float(inverse_count), float(shift), float(scale), float(clip_coef), clip_value_coef
        added = compute_terms(surrogate, log_prob, entropy, leaves[2], *constants, *numbers)
        d_mean[valid], added_d_log_std, d_value[valid] = differentiate(
            added, float(vf_coef), float(ent_coef), leaves, terms
        )
    d_log_std += added_d_log_std


# ---- Numba ------------------------------------------------------------------------------------------


@jit(FUSED)
def _standardize(
    z: Floats, mean: Floats, inverse_std: Floats, constant: float, row: Floats, size: int, num_columns: int
) -> None:
    """Turn the actions in `z`, transposed, into (action - mean) / std; fill in the log-probs."""
    for n in range(size):
        row[LOG_PROB, n] = constant
    for a in range(num_columns):
        inverse = inverse_std[a]
        for n in range(size):
            standard = (z[a, n] - mean[a, n]) * inverse
            z[a, n] = standard
            row[LOG_PROB, n] -= HALF * standard * standard


@jit(SUMS)
def _mean_gradient(
    z: Floats, row: Floats, inverse_std: Floats, d_log_std: Doubles, size: int, num_columns: int
) -> None:
    """Replace `z` by the gradient of the means, transposed; add the gradient of `log_std`."""
    for a in range(num_columns):
        inverse, total = inverse_std[a], ZERO
        for n in range(size):
            slope = row[SLOPE, n] * z[a, n]
            total += slope * z[a, n] - row[SLOPE, n]
            z[a, n] = slope * inverse
        d_log_std[a] += total


@gaussian_loss.numba
def _gaussian_loss_numba(
    num_rows: int,
    num_columns: int,
    mean: Floats,
    log_std: Floats,
    value: Floats,
    action: Floats,
    old_log_prob: Floats,
    old_value: Floats,
    advantage: Floats,
    return_: Floats,
    valid: Bools,
    surrogate: int,
    inverse_count: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float,
    clip_value_coef: float,
    d_mean: Floats,
    d_log_std: Floats,
    d_value: Floats,
    terms: Doubles,
) -> None:
    block = min(BLOCK, num_rows)
    z = np.empty((num_columns, block), dtype=np.float32)
    means = np.empty((num_columns, block), dtype=np.float32)
    row = np.empty((NUM_SCRATCH, block), dtype=np.float32)
    inverse_std = np.empty(num_columns, dtype=np.float32)
    sums, slopes = np.zeros(5), np.zeros(num_columns)
    log_volume, count = 0.0, 0
    for a in range(num_columns):
        inverse_std[a] = math.exp(-np.float64(log_std[a]))
        log_volume += np.float64(log_std[a])
    entropy = num_columns * 0.5 * (1.0 + _LOG_2PI) + log_volume
    constant = np.float32(-0.5 * num_columns * _LOG_2PI - log_volume)
    width = U(num_columns)
    for begin in range(0, num_rows, BLOCK):
        start, size = U(begin), U(min(BLOCK, num_rows - begin))
        load_block(action, z, start, size, width)
        load_block(mean, means, start, size, width)
        blank_block(z, valid, start, size, width)
        blank_block(means, valid, start, size, width)
        _standardize(z, means, inverse_std, constant, row, size, width)
        rows_loss(
            row, value, old_log_prob, old_value, advantage, return_, valid, start, size,
            surrogate, inverse_count, shift, scale, vf_coef, clip_coef, clip_value_coef, d_value, sums,
        )  # fmt: skip
        _mean_gradient(z, row, inverse_std, slopes, size, width)
        store_block(z, d_mean, start, size, width)
        for n in range(size):
            count += valid[start + n]
    if count > 0:
        sums[2] = count * entropy
    for a in range(num_columns):
        d_log_std[a] += slopes[a] - ent_coef * inverse_count * count
    for k in range(5):
        terms[k] += inverse_count * sums[k]


# ---- Triton -----------------------------------------------------------------------------------------


@triton_jit
def _gaussian_rows(
    mean: tl.tensor,
    log_std: tl.tensor,
    value: tl.tensor,
    action: tl.tensor,
    old_log_prob: tl.tensor,
    old_value: tl.tensor,
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
    clip_value_coef: tl.tensor,
    log_2pi: tl.tensor,
    d_mean: tl.tensor,
    d_value: tl.tensor,
    parts: tl.tensor,
    d_log_std_parts: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    CLIPS: tl.constexpr,
    CLIPS_VALUE: tl.constexpr,
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
    surrogate, slope, kl, beyond = surrogate_triton(log_prob, old, effective, clip_coef, CLIPS)
    square, half = value_loss_triton(value, old_value, return_, row, counts, clip_value_coef, CLIPS_VALUE)
    tl.store(d_value + row, 2.0 * vf_coef * weight * half, mask=here)
    store_parts(parts, counts, surrogate, square, entropy, kl, beyond)

    slope = tl.where(counts, -weight * slope, 0.0)[:, None]
    tl.store(d_mean + at, slope * z * inverse_std, mask=here[:, None] & (column < num_columns)[None, :])
    of_entropy = tl.where(counts, ent_coef * weight, 0.0)[:, None]
    d_log_std = tl.sum((slope * (z * z - 1.0) - of_entropy).to(tl.float64), axis=0)
    tl.store(d_log_std_parts + program * num_columns + column, d_log_std, mask=column < num_columns)


@gaussian_loss.triton
def _gaussian_loss_triton(
    num_rows: int,
    num_columns: int,
    mean: Tensor,
    log_std: Tensor,
    value: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    old_value: Tensor,
    advantage: Tensor,
    return_: Tensor,
    valid: Tensor,
    surrogate: int,
    inverse_count: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float,
    clip_value_coef: float,
    d_mean: Tensor,
    d_log_std: Tensor,
    d_value: Tensor,
    terms: Tensor,
) -> None:
    block_rows, block_columns = block_shape(num_columns)
    num_programs = count_programs(num_rows, block_rows)
    parts = make_parts(mean, num_programs, 5)
    d_log_std_parts = make_parts(mean, num_programs, num_columns)
    rows = mean, log_std, value, action, old_log_prob, old_value, advantage, return_, valid.view(torch.uint8)
    numbers = inverse_count, *split(shift), scale, vf_coef, ent_coef, clip_coef, clip_value_coef, _LOG_2PI
    _gaussian_rows[(num_programs,)](
        *rows,
        *numbers,
        d_mean,
        d_value,
        parts,
        d_log_std_parts,
        num_rows,
        num_columns,
        CLIPS=surrogate == CLIPPED,
        CLIPS_VALUE=not math.isinf(clip_value_coef),
        NUM_ROWS=block_rows,
        NUM_COLUMNS=block_columns,
    )
    terms.add_(parts.sum(dim=0), alpha=inverse_count)
    d_log_std += d_log_std_parts.sum(dim=0)
