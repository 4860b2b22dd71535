"""The loss of categorical actions and its gradient."""

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
from fastac.kernels.numba_tools import FUSED, ONE, SUMS, ZERO, Bools, Doubles, Floats, Ints, Number, U, jit
from fastac.kernels.row_blocks import (
    BLOCK,
    ENTROPY,
    INVERSE,
    LOG_PROB,
    LOG_TOTAL,
    NUM_SCRATCH,
    SLOPE,
    blank_block,
    load_block,
    store_block,
)
from fastac.kernels.sampling import compute_entropy, entropy_triton, fill_entropy, fill_softmax
from fastac.kernels.specification import Real
from fastac.kernels.triton_tools import block_shape, count_programs, make_parts, split, triton_jit

if TYPE_CHECKING:
    import triton.language as tl


@kernel("M A", is_step=True)
def categorical_loss(
    logits: Annotated[Tensor, "float32 M A"],
    value: Annotated[Tensor, "float32 M"],
    action: Annotated[Tensor, "int64 M"],
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
    d_logits: Annotated[Tensor, "float32 M A"],
    d_value: Annotated[Tensor, "float32 M"],
    terms: Annotated[Tensor, "float64 5"],
) -> None:
    """Compute the loss of categorical actions and its gradient; arguments are described in `fastac.kernels.losses`.

    `d_logits` is written: 0 in rows that are not valid.
    """
    d_logits.zero_()
    d_value.zero_()
    with torch.enable_grad():
        leaves = logits[valid].detach().requires_grad_(), value[valid].detach().requires_grad_()
        log_probs = torch.log_softmax(leaves[0], dim=-1)  # [M, A]
        log_prob = log_probs.gather(-1, action[valid].unsqueeze(-1)).squeeze(-1)  # [M]
        entropy = compute_entropy(log_probs)  # [M]
        constants = old_log_prob[valid], old_value[valid], advantage[valid], return_[valid]
        numbers = float(inverse_count), float(shift), float(scale), float(clip_coef), clip_value_coef
        added = compute_terms(surrogate, log_prob, entropy, leaves[1], *constants, *numbers)
        d_logits[valid], d_value[valid] = differentiate(added, vf_coef, ent_coef, leaves, terms)


# ---- Numba ------------------------------------------------------------------------------------------

_NAN = np.float32(np.nan)


@jit(SUMS)
def _sum_valid(row: Floats, valid: Bools, start: int, size: int) -> Number:
    total = ZERO
    for n in range(size):
        total += row[ENTROPY, n] if valid[start + n] else ZERO
    return total


@jit(FUSED)
def _choose(shifted: Floats, row: Floats, action: Ints, valid: Bools, start: int, size: int, num_actions: int) -> None:
    """Fill in the log-probs of the actions; NaN if a valid row's action is out of range."""
    for n in range(size):
        row[LOG_PROB, n] = _NAN if valid[start + n] else ZERO
    for a in range(num_actions):
        for n in range(size):
            log_prob, before = shifted[a, n] - row[LOG_TOTAL, n], row[LOG_PROB, n]
            row[LOG_PROB, n] = log_prob if action[start + n] == np.int64(a) else before


@jit(FUSED)
def _logits_gradient(
    shifted: Floats,
    weight: Floats,
    row: Floats,
    action: Ints,
    valid: Bools,
    start: int,
    size: int,
    num_actions: int,
    entropy_slope: float,
) -> None:
    """Replace the exps in `weight` by the gradient, transposed."""
    for a in range(num_actions):
        for n in range(size):
            probability = weight[a, n] * row[INVERSE, n]
            bend = probability * (shifted[a, n] - row[LOG_TOTAL, n] + row[ENTROPY, n])  # minus d entropy / d logit
            bend = bend if probability > ZERO else ZERO
            chosen = ONE if action[start + n] == np.int64(a) else ZERO
            slope = row[SLOPE, n] * (chosen - probability) + entropy_slope * bend
            weight[a, n] = slope if valid[start + n] else ZERO


@categorical_loss.numba
def _categorical_loss_numba(
    num_rows: int,
    num_actions: int,
    logits: Floats,
    value: Floats,
    action: Ints,
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
    d_logits: Floats,
    d_value: Floats,
    terms: Doubles,
) -> None:
    block = min(BLOCK, num_rows)
    shifted = np.empty((num_actions, block), dtype=np.float32)
    exps = np.empty((num_actions, block), dtype=np.float32)
    row = np.empty((NUM_SCRATCH, block), dtype=np.float32)
    sums = np.zeros(5)
    width = U(num_actions)
    for begin in range(0, num_rows, BLOCK):
        start, size = U(begin), U(min(BLOCK, num_rows - begin))
        load_block(logits, shifted, start, size, width)
        blank_block(shifted, valid, start, size, width)
        fill_softmax(shifted, exps, row, size, width)
        fill_entropy(shifted, exps, row, size, width)
        _choose(shifted, row, action, valid, start, size, width)
        rows_loss(
            row, value, old_log_prob, old_value, advantage, return_, valid, start, size,
            surrogate, inverse_count, shift, scale, vf_coef, clip_coef, clip_value_coef, d_value, sums,
        )  # fmt: skip
        sums[2] += _sum_valid(row, valid, start, size)
        _logits_gradient(shifted, exps, row, action, valid, start, size, width, np.float32(ent_coef * inverse_count))
        store_block(exps, d_logits, start, size, width)
    for k in range(5):
        terms[k] += inverse_count * sums[k]


# ---- Triton -----------------------------------------------------------------------------------------


@triton_jit
def _categorical_rows(
    logits: tl.tensor,
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
    d_logits: tl.tensor,
    d_value: tl.tensor,
    parts: tl.tensor,
    num_rows: tl.tensor,
    num_actions: tl.tensor,
    CLIPS: tl.constexpr,
    CLIPS_VALUE: tl.constexpr,
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
    entropy = entropy_triton(shifted, exps, total)
    taken = tl.load(action + row, mask=counts, other=0)
    chosen = column == taken[:, None]
    log_prob = tl.sum(tl.where(chosen, shifted, 0.0), axis=1) - log_total
    log_prob = tl.where((taken >= 0) & (taken < num_actions), log_prob, float("nan"))  # action out of range
    advantages = tl.load(advantage + row, mask=counts, other=0.0)
    effective = ((advantages - shift) - shift_rest) * scale
    old = tl.load(old_log_prob + row, mask=counts, other=0.0)
    surrogate, slope, kl, beyond = surrogate_triton(log_prob, old, effective, clip_coef, CLIPS)
    square, half = value_loss_triton(value, old_value, return_, row, counts, clip_value_coef, CLIPS_VALUE)
    tl.store(d_value + row, 2.0 * vf_coef * weight * half, mask=here)
    store_parts(parts, counts, surrogate, square, entropy, kl, beyond)

    probability = exps / total[:, None]
    bend = probability * (shifted - log_total[:, None] + entropy[:, None])  # minus d entropy / d logit
    bend = tl.where(probability > 0.0, bend, 0.0)
    gradient = ent_coef * bend - slope[:, None] * (tl.where(chosen, 1.0, 0.0) - probability)
    gradient = tl.where(counts[:, None], weight * gradient, 0.0)
    tl.store(d_logits + at, gradient, mask=here[:, None] & (column < num_actions))


@categorical_loss.triton
def _categorical_loss_triton(
    num_rows: int,
    num_actions: int,
    logits: Tensor,
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
    d_logits: Tensor,
    d_value: Tensor,
    terms: Tensor,
) -> None:
    block_rows, block_columns = block_shape(num_actions)
    num_programs = count_programs(num_rows, block_rows)
    parts = make_parts(logits, num_programs, 5)
    rows = logits, value, action, old_log_prob, old_value, advantage, return_, valid.view(torch.uint8)
    numbers = inverse_count, *split(shift), scale, vf_coef, ent_coef, clip_coef, clip_value_coef
    _categorical_rows[(num_programs,)](
        *rows,
        *numbers,
        d_logits,
        d_value,
        parts,
        num_rows,
        num_actions,
        CLIPS=surrogate == CLIPPED,
        CLIPS_VALUE=not math.isinf(clip_value_coef),
        NUM_ROWS=block_rows,
        NUM_COLUMNS=block_columns,
    )
    terms.add_(parts.sum(dim=0), alpha=inverse_count)
