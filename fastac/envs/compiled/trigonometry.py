"""Sine and cosine of a float64 together, which most physics needs.

The C library's two functions branch on their argument, and what is hard to predict costs more than the arithmetic. The
polynomials are those of Cephes (S. L. Moshier, cmath/sin.c).
"""

from __future__ import annotations

import math

import numba

_MOST = 1e5  # up to here, the argument less a multiple of pi / 2 is exact enough
_PER_RIGHT_ANGLE = 2.0 / math.pi
# pi / 2 in three parts; multiples of the first two have no rounding error.
_HIGH, _MIDDLE, _LOW = 2 * 7.85398125648498535156e-1, 2 * 3.77489470793079817668e-8, 2 * 2.69515142907905952645e-15
_S0, _S1, _S2 = 1.58962301576546568060e-10, -2.50507477628578072866e-8, 2.75573136213857245213e-6
_S3, _S4, _S5 = -1.98412698295895385996e-4, 8.33333333332211858878e-3, -1.66666666666666307295e-1
_C0, _C1, _C2 = -1.13585365213876817300e-11, 2.08757008419747316778e-9, -2.75573141792967388112e-7
_C3, _C4, _C5 = 2.48015872888517045348e-5, -1.38888888888730564116e-3, 4.16666666666665929218e-2


@numba.njit(error_model="numpy", forceinline=True)
def sin_cos(x: float) -> tuple[float, float]:
    """Return the sine and the cosine of an angle in radians; their error is at most about 1e-16."""
    if not abs(x) < _MOST:
        return math.sin(x), math.cos(x)
    turns = math.floor(x * _PER_RIGHT_ANGLE + 0.5)
    rest = ((x - turns * _HIGH) - turns * _MIDDLE) - turns * _LOW  # from -pi / 4 to pi / 4
    square = rest * rest
    sin = (((((_S0 * square + _S1) * square + _S2) * square + _S3) * square + _S4) * square + _S5) * square
    sin = rest + rest * sin
    cos = (((((_C0 * square + _C1) * square + _C2) * square + _C3) * square + _C4) * square + _C5) * square
    cos = 1.0 - 0.5 * square + square * cos
    quarter = int(turns) & 3
    if quarter & 1:
        sin, cos = cos, sin
    return (-sin if quarter & 2 else sin), (-cos if (quarter + 1) & 2 else cos)
