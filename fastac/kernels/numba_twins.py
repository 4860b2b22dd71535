"""The Numba twins of `reference`, for float32 on the CPU: same signatures, same results to rounding.

Numba's cache on disk notices a change only in the file that a function is in, so all of them live in
this one. Three things make them fast:

- Tensors are handed over as addresses: `Tensor.numpy()` costs 0.6 us, an address 0.07 us, and a
  kernel takes up to 15 tensors. `_addresses` checks what Numba's array types would have checked.
- The inner loops run over unsigned indices of flat arrays (a signed index could be negative, which
  numpy counts from the end), without branches, over few enough arrays for LLVM's run-time alias
  checks: so LLVM vectorises them. Categorical kernels work on blocks of rows, transposed, for the
  same reason: one loop per action, over rows.
- exp and log are polynomials, part of the loop that needs them.

`fastmath` is given flag by flag and never has nnan or ninf: a NaN has to surface.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numba
import numpy as np
import torch
from numba import carray, types  # type: ignore[attr-defined]  # numba hands them on without declaring it
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

from fastac.kernels.reference import DENSE_ACTIVATIONS

# What kernels take, flat. Floats are float32, or float64 where gradcheck asks; sizes and indices of
# inner loops are `_U`.
_Floats: TypeAlias = NDArray[Any]
_Doubles: TypeAlias = NDArray[np.float64]
_Bools: TypeAlias = NDArray[np.bool_]
_Ints: TypeAlias = NDArray[np.int64]
_Bytes: TypeAlias = NDArray[np.uint8]
_Kernel: TypeAlias = Callable[..., Any]
_Number: TypeAlias = Any  # of whatever type Numba finds

_U = np.uint64
_FUSED = {"contract"}  # a * b + c may be rounded once
_SUMS = {"contract", "reassoc", "nsz"}  # and sums taken in any order, which reductions need to vectorise


def _jit(fastmath: set[str] | bool = False) -> Callable[[_Kernel], _Kernel]:
    """A part of kernels, compiled when a kernel is, into it.

    A part that stayed a function of its own would be compiled twice, in other ways: a process that compiles runs the
    one, whoever loads the kernel from the cache runs the other, and their sums differ in the last bit.
    """
    return numba.njit(fastmath=fastmath, error_model="numpy", forceinline=True)


def _entry(signature: str) -> Callable[[_Kernel], _Kernel]:
    """What Python calls: compiled at import, or loaded from the cache on disk."""
    return numba.njit(signature, cache=True, error_model="numpy")


# ---- exp and log, from Cephes (S. L. Moshier, single/expf.c and logf.c), at most 2 ulp off ----------

_ONE, _TWO, _HALF, _ZERO = np.float32(1.0), np.float32(2.0), np.float32(0.5), np.float32(0.0)
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_MIN, _EXP_MAX = np.float32(-86.0), np.float32(89.0)  # below, 0 instead of denormals; above, inf
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_L0, _L1, _L2 = np.float32(7.0376836292e-2), np.float32(-1.1514610310e-1), np.float32(1.1676998740e-1)
_L3, _L4, _L5 = np.float32(-1.2420140846e-1), np.float32(1.4249322787e-1), np.float32(-1.6668057665e-1)
_L6, _L7, _L8 = np.float32(2.0000714765e-1), np.float32(-2.4999993993e-1), np.float32(3.3333331174e-1)
_INF = np.float32(np.inf)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_MANTISSA_SIZE = np.int32(23)
_EXPONENT_BIAS = np.int32(127)


# Numba calls what `overload` below chooses for the type; Python never gets to run these two.
def _exp(x: _Number) -> _Number:
    """Return e to the x: the polynomial for float32, libm's for float64."""
    raise NotImplementedError("for Numba only")


def _log(x: _Number) -> _Number:
    """Return the natural logarithm of a positive, not denormal x: the polynomial for float32, libm's for float64."""
    raise NotImplementedError("for Numba only")


@overload(_exp, jit_options={"fastmath": _FUSED, "forceinline": True})
def _choose_exp(x: _Number) -> _Kernel:
    def polynomial(x: _Number) -> _Number:
        clamped = x if x > _EXP_MIN else _EXP_MIN  # NaN has no exponent
        clamped = clamped if clamped < _EXP_MAX else _EXP_MAX
        exponent = np.floor(clamped * _LOG2_E + _HALF)
        r = (x - exponent * _LN2_HIGH) - exponent * _LN2_LOW
        y = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
        y = y * r * r + r + _ONE
        # Half of the power of two, so that the largest result's fits.
        half_power = np.int32((np.int32(exponent) + (_EXPONENT_BIAS - np.int32(1))) << _MANTISSA_SIZE)
        y = y * half_power.view(np.float32) * _TWO
        y = _ZERO if x < _EXP_MIN else y
        return _INF if x > _EXP_MAX else y  # x = NaN made y NaN

    def libm(x: _Number) -> _Number:
        return math.exp(x)

    return polynomial if x == types.float32 else libm


@overload(_log, jit_options={"fastmath": _FUSED, "forceinline": True})
def _choose_log(x: _Number) -> _Kernel:
    def polynomial(x: _Number) -> _Number:
        bits = np.float32(x).view(np.int32)
        exponent = (bits - _SQRT_HALF_BITS) >> _MANTISSA_SIZE
        z = np.int32(bits - (exponent << _MANTISSA_SIZE)).view(np.float32) - _ONE  # in sqrt(1/2) - 1 .. sqrt(2) - 1
        y = (((((((_L0 * z + _L1) * z + _L2) * z + _L3) * z + _L4) * z + _L5) * z + _L6) * z + _L7) * z + _L8
        y = y * z * z * z + np.float32(exponent) * _LN2_LOW - _HALF * z * z
        y = (z + y) + np.float32(exponent) * _LN2_HIGH
        return y if x == x else x  # NaN

    def libm(x: _Number) -> _Number:
        return math.log(x)

    return polynomial if x == types.float32 else libm


# ---- addresses --------------------------------------------------------------------------------------


def _array_at(element: types.Type) -> _Kernel:
    """Make the function that turns an address and a size into an array."""

    def cast(_context: _Number, address: _Number) -> _Number:
        def generate(context: _Number, builder: _Number, signature: _Number, arguments: _Number) -> _Number:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), generate  # type: ignore[no-untyped-call]  # numba has no types

    pointer: _Kernel = intrinsic(cast)

    @_jit()
    def array(address: int, size: int) -> NDArray[Any]:
        return carray(pointer(address), size)

    return array


_floats, _doubles = _array_at(types.float32), _array_at(types.float64)
_bools, _ints = _array_at(types.boolean), _array_at(types.int64)
_bytes = _array_at(types.uint8)

_F4, _F8, _B1, _I8 = torch.float32, torch.float64, torch.bool, torch.int64


def _addresses(tensors: tuple[Tensor, ...], dtypes: tuple[torch.dtype, ...], sizes: tuple[int, ...]) -> list[int]:
    """Return where the data lie; the kernels read and write there without any check of their own.

    Raises:
        ValueError: a tensor is not contiguous, or not of the dtype or size that the kernel takes.
    """
    addresses = []
    for tensor, dtype, size in zip(tensors, dtypes, sizes, strict=True):
        if tensor.dtype is not dtype or tensor.numel() != size or not tensor.is_contiguous():
            raise ValueError(
                f"argument of shape {tuple(tensor.shape)}, {tensor.dtype}, strides {tensor.stride()}: the kernel takes "
                f"a contiguous one of {size} elements, {dtype}; convert it, or call the reference."
            )
        addresses.append(tensor.data_ptr())
    return addresses


# ---- moments ----------------------------------------------------------------------------------------

# Rows whose deviations are summed in float32 before float64 takes over; their data stay in L1.
_STRIP = 1024
# So many of the first ones say well enough where to take deviations from.
_HEAD = 64


@_jit()
def _first_valid(valid: _Bools, start: int, size: int) -> _Number:
    """Return the index of the first valid row, or of the first row where none is."""
    for k in range(size):
        if valid[start + k]:
            return start + k
    return start


@_jit()
def _merge(moments: _Doubles, k: int, count: int, shift: float, total: float, squares: float) -> _Number:
    """Merge sums of deviations from `shift` into mean and M2, `moments[k]` and `[k+1]`, of `moments[0]` rows.

    As in Chan, Golub and LeVeque 1983. Returns the new mean: deviations of the next strip from it are
    small enough for float32, and exactly 0 where all numbers are equal.
    """
    mean = np.float64(total) / count
    delta = np.float64(shift) + mean - moments[k]
    share = count / (moments[0] + count)
    moments[k] += delta * share
    moments[k + 1] += max(0.0, np.float64(squares) - total * mean) + delta * delta * moments[0] * share
    return moments[k]


@_jit()
def _deviation(number: float, mean: float, counts: bool) -> _Number:
    """Return the difference where a row counts, a function of its own so that sums do not take it apart."""
    return number - mean if counts else np.float32(0.0)


@_jit(_SUMS)
def _sum_strip(row: _Floats, valid: _Bools, start: int, size: int, shift: float) -> _Number:
    count, total, squares = np.int32(0), np.float32(0.0), np.float32(0.0)
    for k in range(size):
        deviation = _deviation(row[start + k], shift, valid[start + k])
        count += np.int32(valid[start + k])
        total += deviation
        squares += deviation * deviation
    return count, total, squares


@_entry("void(i8,i8,i8,i8)")
def _batch_moments_at(size: int, advantage_at: int, valid_at: int, moments_at: int) -> None:
    advantage, valid = _floats(advantage_at, size), _bools(valid_at, size)
    moments = _doubles(moments_at, 3)
    moments[:] = 0.0
    shift: _Number = np.float32(0.0)
    for start in range(0, size, _STRIP):
        strip = _U(min(_STRIP, size - start))
        if moments[0] == 0.0:
            shift = advantage[_first_valid(valid, _U(start), strip)]
            count, total, _ = _sum_strip(advantage, valid, _U(start), min(strip, _U(_HEAD)), shift)
            shift += np.float32(total / max(count, 1))
        count, total, squares = _sum_strip(advantage, valid, _U(start), strip, shift)
        if count:
            shift = np.float32(_merge(moments, 1, count, shift, total, squares))
            moments[0] += count


def batch_moments(advantage: Tensor, valid: Tensor, moments: Tensor) -> None:
    """See `reference.batch_moments`."""
    size = advantage.numel()
    _batch_moments_at(size, *_addresses((advantage, valid, moments), (_F4, _B1, _F8), (size, size, 3)))


# ---- advantages -------------------------------------------------------------------------------------

# Rows of fewer envs are not worth a vectorised loop of their own.
_NARROW = 32


@_jit(_FUSED)
def _next_advantage(
    reward: _Floats,
    value: _Floats,
    terminated: _Bools,
    truncated: _Bools,
    gamma: float,
    decay: float,
    advantage: _Floats,
    k: int,
    num_envs: int,
) -> _Number:
    zero = advantage.dtype.type(0.0)
    next_value = zero if terminated[k] else value[k + num_envs]
    following = zero if terminated[k] | truncated[k] else advantage[k + num_envs]
    return reward[k] + gamma * next_value - value[k] + decay * following


@_jit(_FUSED)
def _last_row(
    reward: _Floats, value: _Floats, terminated: _Bools, gamma: float, advantage: _Floats, start: int, num_envs: int
) -> None:
    for n in range(num_envs):
        k = start + n
        next_value = advantage.dtype.type(0.0) if terminated[k] else value[k + num_envs]
        advantage[k] = reward[k] + gamma * next_value - value[k]


@_jit(_FUSED)
def _row(
    reward: _Floats,
    value: _Floats,
    terminated: _Bools,
    truncated: _Bools,
    gamma: float,
    decay: float,
    advantage: _Floats,
    start: int,
    num_envs: int,
) -> None:
    for n in range(num_envs):
        advantage[start + n] = _next_advantage(
            reward, value, terminated, truncated, gamma, decay, advantage, start + n, num_envs
        )


@_jit(_FUSED)
def _narrow_rows(
    reward: _Floats,
    value: _Floats,
    terminated: _Bools,
    truncated: _Bools,
    gamma: float,
    decay: float,
    advantage: _Floats,
    start: int,
    stop: int,
    num_envs: int,
) -> None:
    for k in range(stop - start):
        advantage[stop - _U(1) - k] = _next_advantage(
            reward, value, terminated, truncated, gamma, decay, advantage, stop - _U(1) - k, num_envs
        )


@_jit(_SUMS)
def _finish_strip(
    advantage: _Floats,
    value: _Floats,
    return_: _Floats,
    valid: _Bools,
    start: int,
    size: int,
    shift_a: float,
    shift_r: float,
) -> _Number:
    """Write the returns and sum what moments need, in one loop: in three it took a third longer."""
    zero = np.float32(0.0)
    count, total_a, squares_a, total_r, squares_r = np.int32(0), zero, zero, zero, zero
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


@_jit()
def _estimate(
    reward: _Floats,
    value: _Floats,
    terminated: _Bools,
    truncated: _Bools,
    gamma: float,
    decay: float,
    advantage: _Floats,
    start: int,
    stop: int,
    num_envs: int,
) -> None:
    """Write the advantages of steps `start` to `stop`, not the last one."""
    width = _U(num_envs)
    if num_envs < _NARROW:
        first, end = _U(start) * width, _U(stop) * width
        _narrow_rows(reward, value, terminated, truncated, gamma, decay, advantage, first, end, width)
    else:
        for t in range(stop - 1, start - 1, -1):
            _row(reward, value, terminated, truncated, gamma, decay, advantage, _U(t) * width, width)


@_jit()
def _gae(
    num_steps: int,
    num_envs: int,
    reward: _Floats,
    value: _Floats,
    terminated: _Bools,
    truncated: _Bools,
    valid: _Bools,
    gamma: float,
    decay: float,
    advantage: _Floats,
    return_: _Floats,
    moments: _Doubles,
) -> None:
    moments[:] = 0.0
    if num_steps == 0 or num_envs == 0:
        return
    width = _U(num_envs)
    num_rows = max(1, _STRIP // num_envs)  # so many steps at a time stay in L1
    shift_a: _Number = np.float32(0.0)
    shift_r: _Number = np.float32(0.0)
    _last_row(reward, value, terminated, gamma, advantage, _U(num_steps - 1) * width, width)
    stop = num_steps
    while stop > 0:
        start, last = max(0, stop - num_rows), min(stop, num_steps - 1)
        _estimate(reward, value, terminated, truncated, gamma, decay, advantage, start, last, num_envs)
        for begin in range(start * num_envs, stop * num_envs, _STRIP):
            at, size = _U(begin), _U(min(_STRIP, stop * num_envs - begin))
            if moments[0] == 0.0:
                first = _first_valid(valid, at, size)
                shift_a, shift_r = advantage[first], advantage[first] + value[first]
                count, total_a, _, total_r, _ = _finish_strip(
                    advantage, value, return_, valid, at, min(size, _U(_HEAD)), shift_a, shift_r
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


@_entry("void(i8,i8,i8,i8,i8,i8,i8,f8,f8,i8,i8,i8)")
def _gae_at(
    num_steps: int,
    num_envs: int,
    reward_at: int,
    value_at: int,
    terminated_at: int,
    truncated_at: int,
    valid_at: int,
    gamma: float,
    gae_lambda: float,
    advantage_at: int,
    return_at: int,
    moments_at: int,
) -> None:
    size = num_steps * num_envs
    _gae(
        num_steps,
        num_envs,
        _floats(reward_at, size),
        _floats(value_at, size + num_envs),
        _bools(terminated_at, size),
        _bools(truncated_at, size),
        _bools(valid_at, size),
        np.float32(gamma),
        np.float32(gamma * gae_lambda),
        _floats(advantage_at, size),
        _floats(return_at, size),
        _doubles(moments_at, 5),
    )


_GAE_DTYPES = (_F4, _F4, _B1, _B1, _B1, _F4, _F4, _F8)


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
    num_steps, num_envs = reward.shape
    size = num_steps * num_envs
    *inputs, advantage_at, return_at, moments_at = _addresses(
        (reward, value, terminated, truncated, valid, advantage, return_, moments),
        _GAE_DTYPES,
        (size, size + num_envs, size, size, size, size, size, 5),
    )
    _gae_at(num_steps, num_envs, *inputs, gamma, gae_lambda, advantage_at, return_at, moments_at)


# ---- categorical ------------------------------------------------------------------------------------

# Rows worked on together; their scratch stays in L1 up to about 30 actions.
_BLOCK = 128

# `row` is scratch with a number per row of a block:
_TOTAL = 0  # sum of exps
_MAXIMUM = _LOG_TOTAL = 1  # of the logits; later the log of the sum
_INVERSE = 2  # of the sum
_ENTROPY = 3
_LOG_PROB = 4  # of the action
_CUMULATIVE = _SLOPE = 5  # probability, when sampling; d total / d log-prob, in a loss
_NUM_SCRATCH = 6


@_jit()
def _load(source: _Floats, block: _Floats, start: int, size: int, num_columns: int) -> None:
    """Transpose a block of rows; a loop that does nothing else can do it by gathering."""
    for a in range(num_columns):
        for n in range(size):
            block[a, n] = source[(start + n) * num_columns + a]


@_jit()
def _store(block: _Floats, target: _Floats, start: int, size: int, num_columns: int) -> None:
    """Transpose a block back."""
    for a in range(num_columns):
        for n in range(size):
            target[(start + n) * num_columns + a] = block[a, n]


@_jit()
def _blank(block: _Floats, valid: _Bools, start: int, size: int, num_columns: int) -> None:
    """Put 0 in the place of what rows hold that are not valid."""
    for a in range(num_columns):
        for n in range(size):
            number = block[a, n]
            block[a, n] = number if valid[start + n] else block.dtype.type(0.0)


@_jit(_FUSED)
def _softmax(shifted: _Floats, weight: _Floats, row: _Floats, size: int, num_actions: int) -> None:
    """Turn logits, transposed, into logits less their maximum, the exp of that, and in `row[_TOTAL]` its sum.

    A NaN among the logits makes the sum NaN, and with it everything that follows.
    """
    for n in range(size):
        row[_MAXIMUM, n] = shifted[0, n]
        row[_TOTAL, n] = 0.0
    for a in range(_U(1), num_actions):
        for n in range(size):
            logit, largest = shifted[a, n], row[_MAXIMUM, n]
            row[_MAXIMUM, n] = logit if logit > largest else largest
    for a in range(num_actions):
        for n in range(size):
            difference = shifted[a, n] - row[_MAXIMUM, n]
            exp = _exp(difference)
            shifted[a, n] = difference
            weight[a, n] = exp
            row[_TOTAL, n] += exp


@_jit(_FUSED)
def _entropy(shifted: _Floats, weight: _Floats, row: _Floats, size: int, num_actions: int) -> None:
    """Fill in log and inverse of the sum that `_softmax` left, and the entropy."""
    zero = shifted.dtype.type(0.0)
    for n in range(size):
        row[_LOG_TOTAL, n] = _log(row[_TOTAL, n])
        row[_INVERSE, n] = shifted.dtype.type(1.0) / row[_TOTAL, n]
        row[_ENTROPY, n] = zero
    for a in range(num_actions):
        for n in range(size):
            probable = weight[a, n]
            term = probable * shifted[a, n]
            row[_ENTROPY, n] += term if probable > zero else zero  # nothing, where -inf makes it NaN
    for n in range(size):
        row[_ENTROPY, n] = row[_LOG_TOTAL, n] - row[_ENTROPY, n] * row[_INVERSE, n]


@_jit(_FUSED)
def _draw(
    shifted: _Floats,
    weight: _Floats,
    row: _Floats,
    uniform: _Floats,
    action: _Ints,
    start: int,
    size: int,
    num_actions: int,
) -> None:
    """Invert the cumulative distribution into `action`; its log-prob goes to `row`."""
    for n in range(size):
        action[start + n] = 0
        row[_LOG_PROB, n] = shifted[0, n]
        row[_CUMULATIVE, n] = 0.0
    for a in range(_U(1), num_actions):
        for n in range(size):
            row[_CUMULATIVE, n] += weight[a - _U(1), n] * row[_INVERSE, n]
        for n in range(size):
            beyond = row[_CUMULATIVE, n] <= uniform[start + n]
            before, chosen, logit = action[start + n], row[_LOG_PROB, n], shifted[a, n]
            action[start + n] = np.int64(a) if beyond else before
            row[_LOG_PROB, n] = logit if beyond else chosen
    for n in range(size):
        row[_LOG_PROB, n] -= row[_LOG_TOTAL, n]


@_entry("void(i8,i8,i8,i8,i8,i8,i8)")
def _sample_categorical_at(
    num_rows: int, num_actions: int, logits_at: int, uniform_at: int, action_at: int, log_prob_at: int, entropy_at: int
) -> None:
    logits, uniform = _floats(logits_at, num_rows * num_actions), _floats(uniform_at, num_rows)
    action, log_prob, entropy = (
        _ints(action_at, num_rows),
        _floats(log_prob_at, num_rows),
        _floats(entropy_at, num_rows),
    )
    block = min(_BLOCK, num_rows)
    shifted = np.empty((num_actions, block), dtype=np.float32)
    weight = np.empty((num_actions, block), dtype=np.float32)
    row = np.empty((_NUM_SCRATCH, block), dtype=np.float32)
    width = _U(num_actions)
    for begin in range(0, num_rows, _BLOCK):
        start, size = _U(begin), _U(min(_BLOCK, num_rows - begin))
        _load(logits, shifted, start, size, width)
        _softmax(shifted, weight, row, size, width)
        _entropy(shifted, weight, row, size, width)
        _draw(shifted, weight, row, uniform, action, start, size, width)
        for n in range(size):
            log_prob[start + n] = row[_LOG_PROB, n]
            entropy[start + n] = row[_ENTROPY, n]


_SAMPLE_DTYPES = (_F4, _F4, _I8, _F4, _F4)


def sample_categorical(logits: Tensor, uniform: Tensor, action: Tensor, log_prob: Tensor, entropy: Tensor) -> None:
    """See `reference.sample_categorical`."""
    num_rows, num_actions = logits.shape
    addresses = _addresses(
        (logits, uniform, action, log_prob, entropy),
        _SAMPLE_DTYPES,
        (num_rows * num_actions, num_rows, num_rows, num_rows, num_rows),
    )
    _sample_categorical_at(num_rows, num_actions, *addresses)


# ---- losses -----------------------------------------------------------------------------------------


@_jit(_SUMS)
def _policy_gradient(
    row: _Floats, advantage: _Floats, valid: _Bools, start: int, size: int, weight: float, shift: float, scale: float
) -> _Number:
    """Fill in the slopes of minus log-prob times advantage; return the sum of that."""
    zero = row.dtype.type(0.0)
    total = zero
    for n in range(size):
        # In float64: the rounding of nearly equal float32 advantages would be scaled up.
        scaled = row.dtype.type((np.float64(advantage[start + n]) - shift) * scale)
        effective = scaled if valid[start + n] else zero
        row[_SLOPE, n] = -effective * weight
        total -= row[_LOG_PROB, n] * effective
    return total


@_jit()
def _divergence(ratio: float, log_ratio: float, one: float) -> _Number:
    """Return Schulman's k3, a function of its own so that sums do not take apart what nearly cancels."""
    return ratio - one - log_ratio


@_jit(_SUMS)
def _clipped_surrogate(
    row: _Floats,
    old_log_prob: _Floats,
    advantage: _Floats,
    valid: _Bools,
    start: int,
    size: int,
    weight: float,
    shift: float,
    scale: float,
    clip_coef: float,
) -> _Number:
    """Fill in the slopes of PPO's surrogate; return the sums of surrogate, KL and clipped rows."""
    zero, half, one = row.dtype.type(0.0), row.dtype.type(0.5), row.dtype.type(1.0)
    low, high = row.dtype.type(1.0 - clip_coef), row.dtype.type(1.0 + clip_coef)
    total, kl, beyond = zero, zero, zero
    for n in range(size):
        scaled = row.dtype.type((np.float64(advantage[start + n]) - shift) * scale)
        effective = scaled if valid[start + n] else zero
        difference = row[_LOG_PROB, n] - old_log_prob[start + n]
        log_ratio = difference if valid[start + n] else zero
        ratio = _exp(log_ratio)
        clipped = low if ratio < low else (high if ratio > high else ratio)
        plain, limited = ratio * effective, clipped * effective
        total -= limited if limited < plain else plain
        # Autograd's: the gradient of a tie is shared, and clamp passes it on within the range only.
        inside = clipped == ratio
        share = one if inside or plain < limited else (half if plain == limited else zero)
        row[_SLOPE, n] = -share * plain * weight
        kl += _divergence(ratio, log_ratio, one)
        beyond += one if abs(ratio - one) > clip_coef else zero
    return total, kl, beyond


@_jit(_SUMS)
def _value_loss(
    value: _Floats, return_: _Floats, valid: _Bools, d_value: _Floats, start: int, size: int, slope: float
) -> _Number:
    """Fill in the gradient of the squared error times `slope` / 2; return the sum of squares."""
    total = value.dtype.type(0.0)
    for n in range(size):
        difference = value[start + n] - return_[start + n]
        error = difference if valid[start + n] else value.dtype.type(0.0)
        d_value[start + n] = slope * error
        total += error * error
    return total


@_jit(_SUMS)
def _rows_loss(
    row: _Floats,
    value: _Floats,
    old_log_prob: _Floats,
    advantage: _Floats,
    return_: _Floats,
    valid: _Bools,
    start: int,
    size: int,
    weight: float,
    shift: float,
    scale: float,
    vf_coef: float,
    clip_coef: float,
    d_value: _Floats,
    sums: _Doubles,
) -> None:
    """Do what all heads have in common, from `row`'s log-probs to its slopes; add to `sums`."""
    number = row.dtype.type
    if clip_coef < 0.0:
        sums[0] += _policy_gradient(row, advantage, valid, start, size, number(weight), shift, scale)
    else:
        policy, kl, beyond = _clipped_surrogate(
            row, old_log_prob, advantage, valid, start, size, number(weight), shift, scale, number(clip_coef)
        )
        sums[0] += policy
        sums[3] += kl
        sums[4] += beyond
    sums[1] += _value_loss(value, return_, valid, d_value, start, size, number(2.0 * vf_coef * weight))


@_jit(_SUMS)
def _sum_valid(row: _Floats, valid: _Bools, start: int, size: int) -> _Number:
    total = row.dtype.type(0.0)
    for n in range(size):
        total += row[_ENTROPY, n] if valid[start + n] else row.dtype.type(0.0)
    return total


@_jit(_FUSED)
def _choose(
    shifted: _Floats, row: _Floats, action: _Ints, valid: _Bools, start: int, size: int, num_actions: int
) -> None:
    """Fill in the log-probs of the actions; NaN for a valid row's action that does not exist."""
    nan, zero = row.dtype.type(np.nan), row.dtype.type(0.0)
    for n in range(size):
        row[_LOG_PROB, n] = nan if valid[start + n] else zero
    for a in range(num_actions):
        for n in range(size):
            log_prob, before = shifted[a, n] - row[_LOG_TOTAL, n], row[_LOG_PROB, n]
            row[_LOG_PROB, n] = log_prob if action[start + n] == np.int64(a) else before


@_jit(_FUSED)
def _logits_gradient(
    shifted: _Floats,
    weight: _Floats,
    row: _Floats,
    action: _Ints,
    valid: _Bools,
    start: int,
    size: int,
    num_actions: int,
    entropy_slope: float,
) -> None:
    """Put the gradient, transposed, in the place of the exps in `weight`."""
    zero, one = row.dtype.type(0.0), row.dtype.type(1.0)
    for a in range(num_actions):
        for n in range(size):
            probability = weight[a, n] * row[_INVERSE, n]
            bend = probability * (shifted[a, n] - row[_LOG_TOTAL, n] + row[_ENTROPY, n])  # minus d entropy / d logit
            bend = bend if probability > zero else zero
            chosen = one if action[start + n] == np.int64(a) else zero
            slope = row[_SLOPE, n] * (chosen - probability) + entropy_slope * bend
            weight[a, n] = slope if valid[start + n] else zero


@_jit()
def _categorical_loss(
    num_rows: int,
    num_actions: int,
    logits: _Floats,
    value: _Floats,
    action: _Ints,
    old_log_prob: _Floats,
    advantage: _Floats,
    return_: _Floats,
    valid: _Bools,
    weight: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float,
    d_logits: _Floats,
    d_value: _Floats,
    terms: _Doubles,
) -> None:
    block = min(_BLOCK, num_rows)
    shifted = np.empty((num_actions, block), dtype=logits.dtype)
    exps = np.empty((num_actions, block), dtype=logits.dtype)
    row = np.empty((_NUM_SCRATCH, block), dtype=logits.dtype)
    sums = np.zeros(5)
    width = _U(num_actions)
    for begin in range(0, num_rows, _BLOCK):
        start, size = _U(begin), _U(min(_BLOCK, num_rows - begin))
        _load(logits, shifted, start, size, width)
        _blank(shifted, valid, start, size, width)
        _softmax(shifted, exps, row, size, width)
        _entropy(shifted, exps, row, size, width)
        _choose(shifted, row, action, valid, start, size, width)
        _rows_loss(
            row, value, old_log_prob, advantage, return_, valid, start, size,
            weight, shift, scale, vf_coef, clip_coef, d_value, sums,
        )  # fmt: skip
        sums[2] += _sum_valid(row, valid, start, size)
        _logits_gradient(shifted, exps, row, action, valid, start, size, width, logits.dtype.type(ent_coef * weight))
        _store(exps, d_logits, start, size, width)
    for k in range(5):
        terms[k] += weight * sums[k]


@_entry("void(i8,i8,i8,i8,i8,i8,i8,i8,i8,f8,f8,f8,f8,f8,f8,i8,i8,i8)")
def _categorical_loss_at(
    num_rows: int,
    num_actions: int,
    logits_at: int,
    value_at: int,
    action_at: int,
    old_log_prob_at: int,
    advantage_at: int,
    return_at: int,
    valid_at: int,
    weight: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float,
    d_logits_at: int,
    d_value_at: int,
    terms_at: int,
) -> None:
    _categorical_loss(
        num_rows,
        num_actions,
        _floats(logits_at, num_rows * num_actions),
        _floats(value_at, num_rows),
        _ints(action_at, num_rows),
        _floats(old_log_prob_at, num_rows),
        _floats(advantage_at, num_rows),
        _floats(return_at, num_rows),
        _bools(valid_at, num_rows),
        weight,
        shift,
        scale,
        vf_coef,
        ent_coef,
        clip_coef,
        _floats(d_logits_at, num_rows * num_actions),
        _floats(d_value_at, num_rows),
        _doubles(terms_at, 5),
    )


def _locate(
    float64: bool, tensors: tuple[Tensor, ...], dtypes: tuple[torch.dtype, ...], sizes: tuple[int, ...]
) -> list[Any]:
    """Return addresses, or for float64 flat arrays, which Numba compiles its kernels for when they come."""
    if not float64:
        return _addresses(tensors, dtypes, sizes)
    _addresses(tensors, tuple(_F8 if dtype is _F4 else dtype for dtype in dtypes), sizes)
    return [tensor.numpy().reshape(-1) for tensor in tensors]


_CATEGORICAL_DTYPES = (_F4, _F4, _I8, _F4, _F4, _F4, _B1, _F4, _F4, _F8)


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
    rows, num_actions = logits.shape
    size = rows * num_actions
    float64 = logits.dtype is _F8
    *inputs, d_logits_at, d_value_at, terms_at = _locate(
        float64,
        (logits, value, action, old_log_prob, advantage, return_, valid, d_logits, d_value, terms),
        _CATEGORICAL_DTYPES,
        (size, rows, rows, rows, rows, rows, rows, size, rows, 5),
    )
    kernel = _categorical_loss if float64 else _categorical_loss_at
    clip = -1.0 if clip_coef is None else clip_coef
    numbers = (inverse_count, shift, scale, vf_coef, ent_coef, clip)
    kernel(rows, num_actions, *inputs, *numbers, d_logits_at, d_value_at, terms_at)


_LOG_2PI = math.log(2.0 * math.pi)


@_jit(_FUSED)
def _standardize(
    z: _Floats, mean: _Floats, inverse_std: _Floats, constant: float, row: _Floats, size: int, num_columns: int
) -> None:
    """Turn the actions in `z`, transposed, into (action - mean) / std; fill in the log-probs."""
    for n in range(size):
        row[_LOG_PROB, n] = constant
    for a in range(num_columns):
        inverse = inverse_std[a]
        for n in range(size):
            standard = (z[a, n] - mean[a, n]) * inverse
            z[a, n] = standard
            row[_LOG_PROB, n] -= row.dtype.type(0.5) * standard * standard


@_jit(_SUMS)
def _mean_gradient(
    z: _Floats, row: _Floats, inverse_std: _Floats, d_log_std: _Doubles, size: int, num_columns: int
) -> None:
    """Put the gradient of the means, transposed, in the place of `z`; add up that of `log_std`."""
    for a in range(num_columns):
        inverse, total = inverse_std[a], row.dtype.type(0.0)
        for n in range(size):
            slope = row[_SLOPE, n] * z[a, n]
            total += slope * z[a, n] - row[_SLOPE, n]
            z[a, n] = slope * inverse
        d_log_std[a] += total


@_jit()
def _gaussian_loss(
    num_rows: int,
    num_columns: int,
    mean: _Floats,
    log_std: _Floats,
    value: _Floats,
    action: _Floats,
    old_log_prob: _Floats,
    advantage: _Floats,
    return_: _Floats,
    valid: _Bools,
    weight: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float,
    d_mean: _Floats,
    d_log_std: _Floats,
    d_value: _Floats,
    terms: _Doubles,
) -> None:
    block = min(_BLOCK, num_rows)
    z = np.empty((num_columns, block), dtype=mean.dtype)
    means = np.empty((num_columns, block), dtype=mean.dtype)
    row = np.empty((_NUM_SCRATCH, block), dtype=mean.dtype)
    inverse_std = np.empty(num_columns, dtype=mean.dtype)
    sums, slopes = np.zeros(5), np.zeros(num_columns)
    log_volume, count = 0.0, 0
    for a in range(num_columns):
        inverse_std[a] = math.exp(-np.float64(log_std[a]))
        log_volume += np.float64(log_std[a])
    entropy = num_columns * 0.5 * (1.0 + _LOG_2PI) + log_volume
    constant = mean.dtype.type(-0.5 * num_columns * _LOG_2PI - log_volume)
    width = _U(num_columns)
    for begin in range(0, num_rows, _BLOCK):
        start, size = _U(begin), _U(min(_BLOCK, num_rows - begin))
        _load(action, z, start, size, width)
        _load(mean, means, start, size, width)
        _blank(z, valid, start, size, width)
        _blank(means, valid, start, size, width)
        _standardize(z, means, inverse_std, constant, row, size, width)
        _rows_loss(
            row, value, old_log_prob, advantage, return_, valid, start, size,
            weight, shift, scale, vf_coef, clip_coef, d_value, sums,
        )  # fmt: skip
        _mean_gradient(z, row, inverse_std, slopes, size, width)
        _store(z, d_mean, start, size, width)
        for n in range(size):
            count += valid[start + n]
    if count > 0:
        sums[2] = count * entropy
    for a in range(num_columns):
        d_log_std[a] += slopes[a] - ent_coef * weight * count
    for k in range(5):
        terms[k] += weight * sums[k]


@_entry("void(i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,f8,f8,f8,f8,f8,f8,i8,i8,i8,i8)")
def _gaussian_loss_at(
    num_rows: int,
    num_columns: int,
    mean_at: int,
    log_std_at: int,
    value_at: int,
    action_at: int,
    old_log_prob_at: int,
    advantage_at: int,
    return_at: int,
    valid_at: int,
    weight: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float,
    d_mean_at: int,
    d_log_std_at: int,
    d_value_at: int,
    terms_at: int,
) -> None:
    _gaussian_loss(
        num_rows,
        num_columns,
        _floats(mean_at, num_rows * num_columns),
        _floats(log_std_at, num_columns),
        _floats(value_at, num_rows),
        _floats(action_at, num_rows * num_columns),
        _floats(old_log_prob_at, num_rows),
        _floats(advantage_at, num_rows),
        _floats(return_at, num_rows),
        _bools(valid_at, num_rows),
        weight,
        shift,
        scale,
        vf_coef,
        ent_coef,
        clip_coef,
        _floats(d_mean_at, num_rows * num_columns),
        _floats(d_log_std_at, num_columns),
        _floats(d_value_at, num_rows),
        _doubles(terms_at, 5),
    )


_GAUSSIAN_DTYPES = (_F4, _F4, _F4, _F4, _F4, _F4, _F4, _B1, _F4, _F4, _F4, _F8)


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
    rows, columns = mean.shape
    size = rows * columns
    float64 = mean.dtype is _F8
    *inputs, d_mean_at, d_log_std_at, d_value_at, terms_at = _locate(
        float64,
        (mean, log_std, value, action, old_log_prob, advantage, return_, valid, d_mean, d_log_std, d_value, terms),
        _GAUSSIAN_DTYPES,
        (size, columns, rows, size, rows, rows, rows, rows, size, columns, rows, 5),
    )
    kernel = _gaussian_loss if float64 else _gaussian_loss_at
    clip = -1.0 if clip_coef is None else clip_coef
    numbers = (inverse_count, shift, scale, vf_coef, ent_coef, clip)
    kernel(rows, columns, *inputs, *numbers, d_mean_at, d_log_std_at, d_value_at, terms_at)


# ---- episodes ---------------------------------------------------------------------------------------


@_jit()
def _add_row(
    reward: _Floats, valid: _Bools, running_return: _Doubles, running_length: _Ints, start: int, num_envs: int
) -> None:
    for n in range(num_envs):
        number = np.float64(reward[start + n])
        running_return[n] += number if valid[start + n] else 0.0
    for n in range(num_envs):
        running_length[n] += np.int64(valid[start + n])


@_jit()
def _any_done(terminated: _Bools, truncated: _Bools, start: int, num_envs: int) -> _Number:
    done = np.uint8(0)
    for n in range(num_envs):
        done |= np.uint8(terminated[start + n]) | np.uint8(truncated[start + n])
    return done != 0


@_entry("i8(i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8)")
def _find_episodes_at(
    num_steps: int,
    num_envs: int,
    reward_at: int,
    valid_at: int,
    terminated_at: int,
    truncated_at: int,
    life_lost_at: int,
    running_return_at: int,
    running_length_at: int,
    return_at: int,
    length_at: int,
) -> _Number:
    size = num_steps * num_envs
    reward, valid = _floats(reward_at, size), _bools(valid_at, size)
    terminated, truncated, life_lost = (
        _bools(terminated_at, size),
        _bools(truncated_at, size),
        _bools(life_lost_at, size),
    )
    running_return, running_length = _doubles(running_return_at, num_envs), _ints(running_length_at, num_envs)
    return_, length = _doubles(return_at, size), _ints(length_at, size)
    found, width = _U(0), _U(num_envs)
    for t in range(_U(num_steps)):
        start = t * width
        _add_row(reward, valid, running_return, running_length, start, width)
        if _any_done(terminated, truncated, start, width):
            for n in range(width):
                if (terminated[start + n] and not life_lost[start + n]) or truncated[start + n]:
                    return_[found], length[found] = running_return[n], running_length[n]
                    running_return[n], running_length[n] = 0.0, 0
                    found += _U(1)
    return np.int64(found)


_EPISODE_DTYPES = (_F4, _B1, _B1, _B1, _B1, _F8, _I8, _F8, _I8)


def find_episodes(
    reward: Tensor,
    valid: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    life_lost: Tensor,
    running_return: Tensor,
    running_length: Tensor,
    return_: Tensor,
    length: Tensor,
) -> int:
    """See `reference.find_episodes`."""
    num_steps, num_envs = reward.shape
    size = num_steps * num_envs
    addresses = _addresses(
        (reward, valid, terminated, truncated, life_lost, running_return, running_length, return_, length),
        _EPISODE_DTYPES,
        (size, size, size, size, size, num_envs, num_envs, size, size),
    )
    found: int = _find_episodes_at(num_steps, num_envs, *addresses)
    return found


# ---- frames -----------------------------------------------------------------------------------------


@_entry("void(i8,i8,i8,i8,i8,i8,i8,i8,i8)")
def _stack_frames_at(
    num_steps: int,
    num_envs: int,
    num_rows: int,
    depth: int,
    frame_size: int,
    frames_at: int,
    age_at: int,
    index_at: int,
    stacks_at: int,
) -> None:
    frames = _bytes(frames_at, (depth - 1 + num_steps) * num_envs * frame_size)
    age, index = _ints(age_at, num_steps * num_envs), _ints(index_at, num_rows)
    stacks = _bytes(stacks_at, num_rows * depth * frame_size)
    for m in range(num_rows):
        row = index[m]
        for lag in range(depth):
            write = _U((m * depth + depth - 1 - lag) * frame_size)
            if age[row] >= lag:
                read = _U((row + (depth - 1 - lag) * num_envs) * frame_size)
                for i in range(_U(frame_size)):
                    stacks[write + i] = frames[read + i]
            else:
                for i in range(_U(frame_size)):
                    stacks[write + i] = np.uint8(0)


def stack_frames(frames: Tensor, age: Tensor, index: Tensor, stacks: Tensor) -> None:
    """See `reference.stack_frames`."""
    (num_steps, num_envs), (num_rows, depth) = age.shape, stacks.shape[:2]
    frame_size = math.prod(frames.shape[2:])
    sizes = ((depth - 1 + num_steps) * num_envs * frame_size, num_steps * num_envs, num_rows)
    addresses = _addresses(
        (frames, age, index, stacks), (torch.uint8, _I8, _I8, torch.uint8), (*sizes, num_rows * depth * frame_size)
    )
    _stack_frames_at(num_steps, num_envs, num_rows, depth, frame_size, *addresses)


@_jit()
def _scale_four(images: _Bytes, out: _Floats, start: int, num_pixels: int, scale: float) -> None:
    for p in range(num_pixels):
        read, write = start + p, start + p * _U(4)
        out[write] = np.float32(images[read]) * scale
        out[write + _U(1)] = np.float32(images[read + num_pixels]) * scale
        out[write + _U(2)] = np.float32(images[read + _U(2) * num_pixels]) * scale
        out[write + _U(3)] = np.float32(images[read + _U(3) * num_pixels]) * scale


@_jit()
def _scale_any(images: _Bytes, out: _Floats, start: int, num_channels: int, num_pixels: int, scale: float) -> None:
    for c in range(num_channels):
        read, write = start + c * num_pixels, start + c
        for p in range(num_pixels):
            out[write + p * num_channels] = np.float32(images[read + p]) * scale


@_entry("void(i8,i8,i8,i8,i8,f8)")
def _scale_images_at(
    num_images: int, num_channels: int, num_pixels: int, images_at: int, out_at: int, scale: float
) -> None:
    size = num_channels * num_pixels
    images, out = _bytes(images_at, num_images * size), _floats(out_at, num_images * size)
    for m in range(num_images):
        if num_channels == 4:  # stacks of Atari's frames: the four stores become vectors
            _scale_four(images, out, _U(m * size), _U(num_pixels), np.float32(scale))
        else:
            _scale_any(images, out, _U(m * size), _U(num_channels), _U(num_pixels), np.float32(scale))


def scale_images(images: Tensor, out: Tensor, scale: float) -> None:
    """See `reference.scale_images`."""
    num_images, num_channels, num_pixels = images.shape
    size = num_images * num_channels * num_pixels
    addresses = _addresses((images, out), (torch.uint8, _F4), (size, size))
    _scale_images_at(num_images, num_channels, num_pixels, *addresses, scale)


# ---- optimiser steps --------------------------------------------------------------------------------

# One pass over memory for torch's seven. Every element is read once and written once, which is what lets
# processes step vectors that they share: each pass would fetch every cache line that another one wrote.
# a * b + c is rounded once where torch's AVX2 and AVX-512 code does, and only there: a product that has to be
# rounded by itself is taken outside of what is `_FUSED`. The statistics equal torch's bit for bit, and so do the
# parameters but for the root: ours is the nearest float32, that of a torch with MKL 1 ulp beside it for 0.6 % of
# numbers, which changes those steps by at most 4 ulp of the step.


@_jit(_FUSED)
def _lerp(start: float, end: float, weight: float) -> _Number:
    return start + weight * (end - start)


@_jit(_FUSED)
def _add_square(total: float, number: float, weight: float) -> _Number:
    return total + weight * number * number


@_jit()
def _adam(
    param: _Floats,
    grad: _Floats,
    average: _Floats,
    square: _Floats,
    grad_scale: float,
    weight1: float,
    beta2: float,
    weight2: float,
    correction: float,
    eps: float,
    rate: float,
    size: int,
) -> None:
    for k in range(size):
        scaled = grad[k] * grad_scale
        mean = _lerp(average[k], scaled, weight1)
        power = _add_square(square[k] * beta2, scaled, weight2)
        average[k], square[k] = mean, power
        param[k] += rate * mean / (math.sqrt(power) / correction + eps)


@_entry("void(i8,i8,i8,i8,i8,f8,f8,f8,f8,f8,f8,f8)")
def _adam_step_at(
    size: int,
    param_at: int,
    grad_at: int,
    average_at: int,
    square_at: int,
    grad_scale: float,
    weight1: float,
    beta2: float,
    weight2: float,
    correction: float,
    eps: float,
    rate: float,
) -> None:
    _adam(
        _floats(param_at, size),
        _floats(grad_at, size),
        _floats(average_at, size),
        _floats(square_at, size),
        np.float32(grad_scale),
        np.float32(weight1),
        np.float32(beta2),
        np.float32(weight2),
        np.float32(correction),
        np.float32(eps),
        np.float32(rate),
        _U(size),
    )


def adam_step(
    param: Tensor,
    grad: Tensor,
    average: Tensor,
    square: Tensor,
    grad_scale: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    count: int,
) -> None:
    """See `reference.adam_step`."""
    size = param.numel()
    addresses = _addresses((param, grad, average, square), (_F4,) * 4, (size,) * 4)
    correction, rate = math.sqrt(1.0 - beta2**count), -learning_rate / (1.0 - beta1**count)
    _adam_step_at(size, *addresses, grad_scale, 1.0 - beta1, beta2, 1.0 - beta2, correction, eps, rate)


@_jit()
def _rmsprop(
    param: _Floats,
    grad: _Floats,
    square: _Floats,
    grad_scale: float,
    alpha: float,
    weight: float,
    eps_inside: float,
    eps_outside: float,
    rate: float,
    size: int,
) -> None:
    """One of both epsilons is 0, so that one loop without a branch does both forms."""
    for k in range(size):
        scaled = grad[k] * grad_scale
        power = _add_square(square[k] * alpha, scaled, weight)
        square[k] = power
        param[k] += rate * scaled / (math.sqrt(power + eps_inside) + eps_outside)


@_entry("void(i8,i8,i8,i8,f8,f8,f8,f8,f8,f8)")
def _rmsprop_step_at(
    size: int,
    param_at: int,
    grad_at: int,
    square_at: int,
    grad_scale: float,
    alpha: float,
    weight: float,
    eps_inside: float,
    eps_outside: float,
    rate: float,
) -> None:
    _rmsprop(
        _floats(param_at, size),
        _floats(grad_at, size),
        _floats(square_at, size),
        np.float32(grad_scale),
        np.float32(alpha),
        np.float32(weight),
        np.float32(eps_inside),
        np.float32(eps_outside),
        np.float32(rate),
        _U(size),
    )


def rmsprop_step(
    param: Tensor,
    grad: Tensor,
    square: Tensor,
    grad_scale: float,
    learning_rate: float,
    alpha: float,
    eps: float,
    eps_in_root: bool,
) -> None:
    """See `reference.rmsprop_step`."""
    size = param.numel()
    addresses = _addresses((param, grad, square), (_F4,) * 3, (size,) * 3)
    inside, outside = (eps, 0.0) if eps_in_root else (0.0, eps)
    _rmsprop_step_at(size, *addresses, grad_scale, alpha, 1.0 - alpha, inside, outside, -learning_rate)


# ---- dense layers -----------------------------------------------------------------------------------

# tanh as a ratio of polynomials (the minimax fit of Eigen's fast tanh), at most 3 ulp off; beyond the limit it
# is 1 in float32.
_TANH_LIMIT = np.float32(7.90531110763549805)
_P0, _P1, _P2 = np.float32(-2.76076847742355e-16), np.float32(2.00018790482477e-13), np.float32(-8.60467152213735e-11)
_P3, _P4, _P5 = np.float32(5.12229709037114e-08), np.float32(1.48572235717979e-05), np.float32(6.37261928875436e-04)
_P6 = np.float32(4.89352455891786e-03)
_Q0, _Q1 = np.float32(1.19825839466702e-06), np.float32(1.18534705686654e-04)
_Q2, _Q3 = np.float32(2.26843463243900e-03), np.float32(4.89352518554385e-03)


@_jit(_FUSED)
def _tanh(x: _Number) -> _Number:
    clamped = _TANH_LIMIT if x > _TANH_LIMIT else x  # NaN passes
    clamped = -_TANH_LIMIT if clamped < -_TANH_LIMIT else clamped
    square = clamped * clamped
    above = (((((_P0 * square + _P1) * square + _P2) * square + _P3) * square + _P4) * square + _P5) * square + _P6
    below = ((_Q0 * square + _Q1) * square + _Q2) * square + _Q3
    return clamped * above / below


@_jit(_FUSED)
def _activate(y: _Floats, begin: int, size: int, activation: int) -> None:
    if activation == 1:
        for j in range(size):
            value = y[begin + j]
            y[begin + j] = _ZERO if value < _ZERO else value  # NaN passes
    elif activation == 2:
        for j in range(size):
            y[begin + j] = _tanh(y[begin + j])


@_jit(_FUSED)
def _four_rows(
    x: _Floats, weight: _Floats, bias: _Floats, y: _Floats, row: int, num_inputs: int, num_outputs: int
) -> None:
    """Four rows at once, four inputs at a time: every weight that is loaded serves four times."""
    y0, x0 = row * num_outputs, row * num_inputs
    y1, x1 = y0 + num_outputs, x0 + num_inputs
    y2, x2 = y1 + num_outputs, x1 + num_inputs
    y3, x3 = y2 + num_outputs, x2 + num_inputs
    for j in range(num_outputs):
        start = bias[j]
        y[y0 + j], y[y1 + j], y[y2 + j], y[y3 + j] = start, start, start, start
    fours = num_inputs // _U(4) * _U(4)
    for k in range(_U(0), fours, _U(4)):
        a0, a1, a2, a3 = x[x0 + k], x[x0 + k + _U(1)], x[x0 + k + _U(2)], x[x0 + k + _U(3)]
        b0, b1, b2, b3 = x[x1 + k], x[x1 + k + _U(1)], x[x1 + k + _U(2)], x[x1 + k + _U(3)]
        c0, c1, c2, c3 = x[x2 + k], x[x2 + k + _U(1)], x[x2 + k + _U(2)], x[x2 + k + _U(3)]
        d0, d1, d2, d3 = x[x3 + k], x[x3 + k + _U(1)], x[x3 + k + _U(2)], x[x3 + k + _U(3)]
        w0 = k * num_outputs
        w1, w2, w3 = w0 + num_outputs, w0 + _U(2) * num_outputs, w0 + _U(3) * num_outputs
        for j in range(num_outputs):
            u0, u1, u2, u3 = weight[w0 + j], weight[w1 + j], weight[w2 + j], weight[w3 + j]
            y[y0 + j] += a0 * u0 + a1 * u1 + a2 * u2 + a3 * u3
            y[y1 + j] += b0 * u0 + b1 * u1 + b2 * u2 + b3 * u3
            y[y2 + j] += c0 * u0 + c1 * u1 + c2 * u2 + c3 * u3
            y[y3 + j] += d0 * u0 + d1 * u1 + d2 * u2 + d3 * u3
    for k in range(fours, num_inputs):
        for j in range(num_outputs):
            u = weight[k * num_outputs + j]
            y[y0 + j] += x[x0 + k] * u
            y[y1 + j] += x[x1 + k] * u
            y[y2 + j] += x[x2 + k] * u
            y[y3 + j] += x[x3 + k] * u


@_jit(_FUSED)
def _one_row(
    x: _Floats, weight: _Floats, bias: _Floats, y: _Floats, row: int, num_inputs: int, num_outputs: int
) -> None:
    y0 = row * num_outputs
    for j in range(num_outputs):
        y[y0 + j] = bias[j]
    for k in range(num_inputs):
        value = x[row * num_inputs + k]
        for j in range(num_outputs):
            y[y0 + j] += value * weight[k * num_outputs + j]


@_entry("void(i8,i8,i8,i8,i8,i8,i8,i8)")
def _dense_at(
    num_rows: int,
    num_inputs: int,
    num_outputs: int,
    activation: int,
    x_at: int,
    weight_at: int,
    bias_at: int,
    y_at: int,
) -> None:
    x, weight = _floats(x_at, num_rows * num_inputs), _floats(weight_at, num_inputs * num_outputs)
    bias, y = _floats(bias_at, num_outputs), _floats(y_at, num_rows * num_outputs)
    rows, inputs, outputs = _U(num_rows), _U(num_inputs), _U(num_outputs)
    fours = rows // _U(4) * _U(4)
    for row in range(_U(0), fours, _U(4)):
        _four_rows(x, weight, bias, y, row, inputs, outputs)
        _activate(y, row * outputs, _U(4) * outputs, activation)
    for row in range(fours, rows):
        _one_row(x, weight, bias, y, row, inputs, outputs)
        _activate(y, row * outputs, outputs, activation)


def prepare_dense(x: Tensor, weight: Tensor, bias: Tensor, activation: str, y: Tensor) -> Callable[[], object]:
    """See `reference.prepare_dense`; the checks are made once, and the call costs half a microsecond."""
    (num_rows, num_inputs), num_outputs = x.shape, y.shape[1]
    sizes = (num_rows * num_inputs, num_inputs * num_outputs, num_outputs, num_rows * num_outputs)
    addresses = _addresses((x, weight, bias, y), (_F4,) * 4, sizes)
    code = DENSE_ACTIVATIONS.index(activation)
    call = functools.partial(_dense_at, num_rows, num_inputs, num_outputs, code, *addresses)
    call.__dict__["tensors"] = (x, weight, bias, y)  # or their memory might go
    return call


def cache_folder() -> str:
    """Return where Numba keeps the kernels on disk."""
    dispatcher: _Number = _gae_at
    return str(dispatcher.stats.cache_path)
