"""One random stream per environment: SplitMix64, which needs two numbers of state and compiles to a few instructions.

The source is G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, as in
Java's SplittableRandom. Draw k of a stream is a mixing function of `start + k * step`. The step, an odd number, is the
stream's own, so no stream is a part of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEP = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # "variant 13" of D. Stafford
_MIX_STEP = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1))  # of MurmurHash3
_LEAST_FLIPS = 24  # a step whose bits change less often gives correlated draws
_BITS = 0xAAAAAAAAAAAAAAAA
_WORD = 2**64
_UNIT = 2.0**-53  # the highest 53 bits become a number in [0, 1)


def make_streams(seeds: Sequence[int] | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the streams `[N, 2]` of N seeds: the bits of where each is, and of its step."""
    seed = np.array([int(seed) % _WORD for seed in seeds], dtype=np.uint64)
    start = _mix(seed + np.uint64(_STEP), _MIX)
    step = _mix(seed + np.uint64(2 * _STEP % _WORD), _MIX_STEP) | np.uint64(1)
    changes = np.array([int(bits).bit_count() for bits in step ^ (step >> np.uint64(1))])
    step[changes < _LEAST_FLIPS] ^= np.uint64(_BITS)
    return np.stack([start, step], axis=1).view(np.int64)


def _mix(words: NDArray[np.uint64], rounds: tuple[tuple[int, int], ...]) -> NDArray[np.uint64]:
    for shift, factor in rounds:
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    return words


def draw(stream: NDArray[np.int64], num: int) -> NDArray[np.float64]:
    """Return the next draws of one stream `[2]`, and move it on; the readable twin of the compiled one."""
    at, step = (int(bits) % _WORD for bits in stream)
    drawn = np.empty(num)
    for k in range(num):
        at = (at + step) % _WORD
        word = at
        for shift, factor in _MIX:
            word = (word ^ (word >> shift)) * factor % _WORD
        drawn[k] = (word >> 11) * _UNIT
    stream[0] = np.uint64(at).astype(np.int64)
    return drawn


def compile_draw(inline: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
    """Return the compiled `fill(streams, index, draws, num)`; `streams` are flat words, two for each environment."""
    (shift_0, factor_0), (shift_1, factor_1), (shift_2, _) = (
        (np.uint64(shift), np.uint64(factor)) for shift, factor in _MIX
    )
    low_bits, unit = np.uint64(11), _UNIT

    @inline
    def fill(streams: NDArray[np.uint64], index: int, draws: NDArray[np.float64], num: int) -> None:
        at, step = streams[2 * index], streams[2 * index + 1]
        for k in range(num):
            at += step
            word = (at ^ (at >> shift_0)) * factor_0
            word = (word ^ (word >> shift_1)) * factor_1
            word ^= word >> shift_2
            draws[k] = np.float64(word >> low_bits) * unit
        streams[2 * index] = at

    return fill
