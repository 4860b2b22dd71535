"""Sampling of categorical and Gaussian actions; softmax and entropy, shared with the categorical loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import FUSED, HALF, ONE, ZERO, Floats, Ints, U, exp, jit, log
from fastac.kernels.row_blocks import (
    BLOCK,
    CUMULATIVE,
    ENTROPY,
    INVERSE,
    LOG_PROB,
    LOG_TOTAL,
    MAXIMUM,
    NUM_SCRATCH,
    TOTAL,
    load_block,
)
from fastac.kernels.triton_tools import Results, block_shape, count_programs, triton_jit

if TYPE_CHECKING:
    import triton.language as tl


def compute_entropy(log_probs: Tensor) -> Tensor:
    """Return the entropies `[...]` of log-probs `[..., A]`."""
    probs = log_probs.exp()
    # An action of probability 0 adds 0, not 0 times -inf.
    return -(probs * log_probs.masked_fill(probs == 0.0, 0.0)).sum(dim=-1)


@kernel("N A", is_step=True)
def sample_categorical(
    logits: Annotated[Tensor, "float32 N A"],
    uniform: Annotated[Tensor, "float32 N"],
    action: Annotated[Tensor, "int64 N"],
    log_prob: Annotated[Tensor, "float32 N"],
    entropy: Annotated[Tensor, "float32 N"],
) -> None:
    """Sample an action per row, with its log-prob and the entropy of its distribution, in nats.

    The cumulative distribution is inverted: the action is the number of its entries that do not exceed `uniform`, and
    at most the last action whose logit is not -inf, because rounding may make the last entry slightly smaller than a
    uniform close to 1. A NaN among a row's logits makes its log-prob and entropy NaN; its action is still in range.

    Args:
        logits: any magnitude.
        uniform: in [0, 1).
        action: written.
        log_prob: written.
        entropy: written.
    """
    log_probs = torch.log_softmax(logits, dim=-1)  # [N, A]
    cdf = torch.softmax(logits, dim=-1).cumsum(dim=-1)  # [N, A]
    last = torch.where(logits == -math.inf, 0, torch.arange(logits.shape[1], device=logits.device)).amax(dim=-1)
    action.copy_(torch.minimum((cdf <= uniform.unsqueeze(-1)).sum(dim=-1), last))
    log_prob.copy_(log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1))
    entropy.copy_(compute_entropy(log_probs))


@kernel("N E A", is_step=True)
def mask_logits(rows: Annotated[Tensor, "float32 N E"], logits: Annotated[Tensor, "float32 N A"]) -> None:
    """Write -inf to the logits of illegal actions.

    Then their probabilities and every gradient at them are 0, so no other kernel needs to know of masks.

    Args:
        rows: observations; the last A of E columns are the mask: 0 where an action is illegal.
        logits: of all components of an action, side by side; written.
    """
    logits.masked_fill_(rows[:, rows.shape[1] - logits.shape[1] :] == 0.0, -math.inf)


@kernel("N A", is_step=True)
def greedy_categorical(logits: Annotated[Tensor, "float32 N A"], action: Annotated[Tensor, "int64 N"]) -> None:
    """Write the most likely action of each row: the first of several; a NaN counts as the largest.

    Args:
        logits: any magnitude.
        action: written.
    """
    action.copy_(logits.argmax(dim=-1))


@kernel("N A", is_step=True)
def sample_gaussian(
    mean: Annotated[Tensor, "float32 N A"],
    log_std: Annotated[Tensor, "float32 A"],
    noise: Annotated[Tensor, "float32 N A"],
    action: Annotated[Tensor, "float32 N A"],
    log_prob: Annotated[Tensor, "float32 N"],
) -> None:
    """Sample an action per row from a diagonal Gaussian, with its log-prob in nats.

    The log-prob is that of the action as rounded to float32, which is what a loss computes it from later.

    Args:
        mean: of the distribution.
        log_std: logs of the deviations, the same for all rows.
        noise: standard normal.
        action: written: `mean + exp(log_std) * noise`.
        log_prob: written.
    """
    action.copy_(mean + log_std.exp() * noise)
    z = (action - mean) * (-log_std).exp()  # [N, A]
    log_prob.copy_((-0.5 * (z.square() + _LOG_2PI) - log_std).sum(dim=-1))


_LOG_2PI = math.log(2.0 * math.pi)


# ---- Numba ------------------------------------------------------------------------------------------


_ILLEGAL = np.float32(-np.inf)


@mask_logits.numba
def _mask_logits_numba(num_rows: int, row_width: int, num_logits: int, rows: Floats, logits: Floats) -> None:
    width, size = U(row_width), U(num_logits)
    for n in range(U(num_rows)):
        begin = n * width + (width - size)
        for a in range(size):
            logit = logits[n * size + a]
            logits[n * size + a] = _ILLEGAL if rows[begin + a] == ZERO else logit


@greedy_categorical.numba
def _greedy_categorical_numba(num_envs: int, num_actions: int, logits: Floats, action: Ints) -> None:
    for n in range(U(num_envs)):
        begin = n * U(num_actions)
        best, largest = 0, logits[begin]
        for a in range(1, num_actions):
            logit = logits[begin + U(a)]
            if largest == largest and not logit <= largest:  # larger, or the first NaN
                best, largest = a, logit
        action[n] = best


@sample_gaussian.numba
def _sample_gaussian_numba(
    num_rows: int, num_actions: int, mean: Floats, log_std: Floats, noise: Floats, action: Floats, log_prob: Floats
) -> None:
    deviation, inverse = np.empty(num_actions, np.float32), np.empty(num_actions, np.float32)
    shift = ZERO
    for a in range(num_actions):
        deviation[a], inverse[a] = exp(log_std[a]), exp(-log_std[a])
        shift -= HALF * np.float32(_LOG_2PI) + log_std[a]
    for n in range(num_rows):
        total = shift
        for a in range(num_actions):
            k = U(n * num_actions + a)
            action[k] = mean[k] + deviation[a] * noise[k]
            z = (action[k] - mean[k]) * inverse[a]
            total -= HALF * z * z
        log_prob[n] = total


@jit(FUSED)
def fill_softmax(shifted: Floats, weight: Floats, row: Floats, size: int, num_actions: int) -> None:
    """Subtract the maximum from transposed logits; write the exps to `weight` and their sum to `row[TOTAL]`.

    A NaN among the logits makes the sum NaN, and therefore all later results.
    """
    for n in range(size):
        row[MAXIMUM, n] = shifted[0, n]
        row[TOTAL, n] = 0.0
    for a in range(U(1), num_actions):
        for n in range(size):
            logit, largest = shifted[a, n], row[MAXIMUM, n]
            row[MAXIMUM, n] = logit if logit > largest else largest
    for a in range(num_actions):
        for n in range(size):
            difference = shifted[a, n] - row[MAXIMUM, n]
            share = exp(difference)
            shifted[a, n] = difference
            weight[a, n] = share
            row[TOTAL, n] += share


@jit(FUSED)
def fill_entropy(shifted: Floats, weight: Floats, row: Floats, size: int, num_actions: int) -> None:
    """Fill in log and inverse of the sum computed by `fill_softmax`, and the entropy."""
    for n in range(size):
        row[LOG_TOTAL, n] = log(row[TOTAL, n])
        row[INVERSE, n] = ONE / row[TOTAL, n]
        row[ENTROPY, n] = ZERO
    for a in range(num_actions):
        for n in range(size):
            probable = weight[a, n]
            term = probable * shifted[a, n]
            row[ENTROPY, n] += term if probable > ZERO else ZERO  # 0 instead of 0 * -inf, which is NaN
    for n in range(size):
        row[ENTROPY, n] = row[LOG_TOTAL, n] - row[ENTROPY, n] * row[INVERSE, n]


@jit(FUSED)
def _draw(
    shifted: Floats,
    weight: Floats,
    row: Floats,
    uniform: Floats,
    action: Ints,
    start: int,
    size: int,
    num_actions: int,
) -> None:
    """Invert the cumulative distribution into `action`; write its log-prob to `row`."""
    for n in range(size):
        action[start + n] = 0
        row[LOG_PROB, n] = shifted[0, n]
        row[CUMULATIVE, n] = 0.0
    for a in range(U(1), num_actions):
        for n in range(size):
            row[CUMULATIVE, n] += weight[a - U(1), n] * row[INVERSE, n]
        for n in range(size):
            before, chosen, logit = action[start + n], row[LOG_PROB, n], shifted[a, n]
            beyond = (row[CUMULATIVE, n] <= uniform[start + n]) & (logit > _ILLEGAL)
            action[start + n] = np.int64(a) if beyond else before
            row[LOG_PROB, n] = logit if beyond else chosen
    for n in range(size):
        row[LOG_PROB, n] -= row[LOG_TOTAL, n]


@sample_categorical.numba
def _sample_categorical_numba(
    num_rows: int, num_actions: int, logits: Floats, uniform: Floats, action: Ints, log_prob: Floats, entropy: Floats
) -> None:
    block = min(BLOCK, num_rows)
    shifted = np.empty((num_actions, block), dtype=np.float32)
    weight = np.empty((num_actions, block), dtype=np.float32)
    row = np.empty((NUM_SCRATCH, block), dtype=np.float32)
    width = U(num_actions)
    for begin in range(0, num_rows, BLOCK):
        start, size = U(begin), U(min(BLOCK, num_rows - begin))
        load_block(logits, shifted, start, size, width)
        fill_softmax(shifted, weight, row, size, width)
        fill_entropy(shifted, weight, row, size, width)
        _draw(shifted, weight, row, uniform, action, start, size, width)
        for n in range(size):
            log_prob[start + n] = row[LOG_PROB, n]
            entropy[start + n] = row[ENTROPY, n]


# ---- Triton -----------------------------------------------------------------------------------------


@triton_jit
def entropy_triton(shifted: tl.tensor, exps: tl.tensor, total: tl.tensor) -> Results:
    """Return the entropies; an action of probability 0 adds 0, not 0 times -inf."""
    return tl.log(total) - tl.sum(exps * tl.where(exps > 0.0, shifted, 0.0), axis=1) / total


@triton_jit
def _sample_rows(
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
    below = (cdf <= threshold[:, None]) & (column < num_actions)
    picked = tl.sum(below.to(tl.int32), axis=1)
    # Rounding may make the last entry slightly smaller than a uniform close to 1.
    picked = tl.minimum(picked, tl.max(tl.where(shifted > float("-inf"), column, 0), axis=1))
    of_action = tl.sum(tl.where(column == picked[:, None], shifted, 0.0), axis=1)
    tl.store(action + row, picked.to(tl.int64), mask=here)
    tl.store(log_prob + row, of_action - tl.log(total), mask=here)
    tl.store(entropy + row, entropy_triton(shifted, exps, total), mask=here)


@sample_categorical.triton
def _sample_categorical_triton(
    num_rows: int, num_actions: int, logits: Tensor, uniform: Tensor, action: Tensor, log_prob: Tensor, entropy: Tensor
) -> None:
    rows, columns = block_shape(num_actions)
    _sample_rows[(count_programs(num_rows, rows),)](
        logits, uniform, action, log_prob, entropy, num_rows, num_actions, NUM_ROWS=rows, NUM_COLUMNS=columns
    )
