"""Seeds of environments, limited to the 31 bits that every random generator and simulator accepts."""

from __future__ import annotations

import numpy as np

_BITS = 31  # NumPy's legacy generator takes 32 bits; a C++ int has a sign
_WORDS = 8  # words drawn per child, to find a seed that is not taken yet


def draw_seeds(seed: np.random.SeedSequence, num: int) -> list[int]:
    """Return `num` distinct seeds from 0 to 2**31 - 1; unlike seed + i, neighbouring runs share none."""
    drawn: dict[int, None] = {}
    for child in seed.spawn(num):
        words = child.generate_state(_WORDS, np.uint32) >> np.uint32(32 - _BITS)
        drawn[next(int(word) for word in words if int(word) not in drawn)] = None
    return list(drawn)


def draw_batch_seed(seed: np.random.SeedSequence, num_envs: int) -> int:
    """Return the seed of a batch, whose i-th environment uses seed + i; all are below 2**31."""
    (child,) = seed.spawn(1)
    return int(child.generate_state(1, np.uint64)[0] % np.uint64(2**_BITS - num_envs))
