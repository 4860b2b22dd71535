"""Seeds of environments, of the 31 bits that every random generator and simulator takes."""

from __future__ import annotations

import numpy as np

_BITS = 31  # NumPy's legacy generator takes 32, a C++ int has a sign
_WORDS = 8  # of a child's stream, of which one is not taken yet


def draw_seeds(seed: np.random.SeedSequence, num: int) -> list[int]:
    """Return so many seeds, from 0 to 2**31 - 1, no two alike: neighbouring runs share none, as seed + i would."""
    drawn: dict[int, None] = {}
    for child in seed.spawn(num):
        words = child.generate_state(_WORDS, np.uint32) >> np.uint32(32 - _BITS)
        drawn[next(int(word) for word in words if int(word) not in drawn)] = None
    return list(drawn)


def draw_batch_seed(seed: np.random.SeedSequence, num_envs: int) -> int:
    """Return a seed for a batch, whose i-th environment takes seed + i: all of them are below 2**31."""
    (child,) = seed.spawn(1)
    return int(child.generate_state(1, np.uint64)[0] % np.uint64(2**_BITS - num_envs))
