"""Building blocks of Numba's forms.

Three things make them fast:

- Inner loops use unsigned indices of flat arrays, no branches, and few enough arrays for LLVM's run-time alias checks,
  so LLVM vectorises them. (A signed index could be negative, which numpy counts from the end.)
- Categorical and Gaussian kernels work on blocks of rows, transposed, for the same reason (`row_blocks.py`).
- exp and log are polynomials, inlined in the loop that needs them.

`fastmath` flags are listed one by one and never include nnan or ninf: a NaN must surface.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Flat arrays, and numbers of the type that Numba infers.
Floats: TypeAlias = NDArray[Any]  # float32
Doubles: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]
Bytes: TypeAlias = NDArray[np.uint8]
Number: TypeAlias = Any

Function: TypeAlias = Callable[..., Any]  # compiled; Numba infers the argument types

U = np.uint64  # type of sizes and indices of inner loops
FUSED = frozenset({"contract"})  # a * b + c may be rounded only once
SUMS = frozenset({"contract", "reassoc", "nsz"})  # sums may also be taken in any order, so that reductions vectorise
ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)


@functools.cache
def load_numba() -> ModuleType | None:
    """Return Numba, or None if its import fails: then nothing is compiled, and `compile_kernels` logs it."""
    try:
        return importlib.import_module("numba")
    except Exception:
        return None


def jit(fastmath: frozenset[str] = frozenset()) -> Callable[[Function], Function]:
    """Mark a function used inside kernels; it is compiled with each kernel and inlined.

    A function that is not inlined would be compiled in two different ways: the process that compiles would run one, and
    processes that load the kernel from the cache the other. Their sums would differ in the last bit.
    """
    numba = load_numba()
    if numba is None:
        return lambda function: function
    mark: Callable[[Function], Function] = numba.njit(fastmath=set(fastmath), error_model="numpy", forceinline=True)
    return mark


# ---- exp and log, from Cephes (S. L. Moshier, single/expf.c and logf.c), error at most 2 ulp --------

_TWO = np.float32(2.0)
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_MIN, _EXP_MAX = np.float32(-86.0), np.float32(89.0)  # below: 0, to avoid denormals; above: inf
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_L0, _L1, _L2 = np.float32(7.0376836292e-2), np.float32(-1.1514610310e-1), np.float32(1.1676998740e-1)
_L3, _L4, _L5 = np.float32(-1.2420140846e-1), np.float32(1.4249322787e-1), np.float32(-1.6668057665e-1)
_L6, _L7, _L8 = np.float32(2.0000714765e-1), np.float32(-2.4999993993e-1), np.float32(3.3333331174e-1)
_INF = np.float32(np.inf)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_MANTISSA_SIZE = np.int32(23)
_EXPONENT_BIAS = np.int32(127)


@jit(FUSED)
def exp(x: Number) -> Number:
    """Return e to the power x, for float32 x."""
    clamped = x if x > _EXP_MIN else _EXP_MIN  # a NaN has no valid exponent, so it becomes the minimum
    clamped = clamped if clamped < _EXP_MAX else _EXP_MAX
    exponent = np.floor(clamped * _LOG2_E + HALF)
    r = (x - exponent * _LN2_HIGH) - exponent * _LN2_LOW
    y = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    y = y * r * r + r + ONE
    # Multiply by half the power of two, then by 2: the full power of the largest result would overflow.
    half_power = np.int32((np.int32(exponent) + (_EXPONENT_BIAS - np.int32(1))) << _MANTISSA_SIZE)
    y = y * half_power.view(np.float32) * _TWO
    y = ZERO if x < _EXP_MIN else y
    return _INF if x > _EXP_MAX else y  # a NaN x has made y NaN


@jit(FUSED)
def log(x: Number) -> Number:
    """Return the natural logarithm of a positive, normal float32."""
    bits = np.float32(x).view(np.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> _MANTISSA_SIZE
    z = np.int32(bits - (exponent << _MANTISSA_SIZE)).view(np.float32) - ONE  # in sqrt(1/2) - 1 .. sqrt(2) - 1
    y = (((((((_L0 * z + _L1) * z + _L2) * z + _L3) * z + _L4) * z + _L5) * z + _L6) * z + _L7) * z + _L8
    y = y * z * z * z + np.float32(exponent) * _LN2_LOW - HALF * z * z
    y = (z + y) + np.float32(exponent) * _LN2_HIGH
    return y if x == x else x  # NaN passes through
