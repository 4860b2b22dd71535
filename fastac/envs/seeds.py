"""Seeds as environments take them."""

from __future__ import annotations

import numpy as np


def to_seed(seed: np.random.SeedSequence) -> int:
    """Return 64 bits of `seed`: neighbouring runs share no stream, as seed + i would make them."""
    return int(seed.generate_state(1, np.uint64)[0])


def spawn_seeds(seed: np.random.SeedSequence, num_envs: int) -> list[int]:
    """Return a seed for each env."""
    return [to_seed(child) for child in seed.spawn(num_envs)]
