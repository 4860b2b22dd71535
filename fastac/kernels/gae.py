"""Batched generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

Shapes: `T` steps, `N` envs, time first. The recursion runs backwards over T; each row is one
contiguous sweep over N, which the compiler vectorises and the prefetcher likes.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_Floats = NDArray[np.float32]
_Bools = NDArray[np.bool_]


def gae_reference(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Compute advantages and returns, readably, in the dtype given: the oracle of the fast twins.

    Args:
        reward: `[T, N]`.
        value: `[T+1, N]`; row T is the value of the observation after the last step.
        terminated: `[T, N]` bool: no value follows.
        truncated: `[T, N]` bool: the value of row t+1 is the final observation's.
        gamma: discount factor.
        gae_lambda: 0 gives the TD error, 1 the Monte Carlo advantage.

    Returns:
        advantage and return, each `[T, N]`. Rows that were not valid hold numbers without meaning.
    """
    alive = 1.0 - terminated.to(reward.dtype)  # [T, N]: a value follows
    carry = 1.0 - (terminated | truncated).to(reward.dtype)  # [T, N]: the episode goes on
    advantage = reward.new_zeros(reward.shape)  # [T, N]
    following = reward.new_zeros(reward.shape[1:])  # [N], the advantage of row t+1
    for t in reversed(range(reward.shape[0])):
        delta = reward[t] + gamma * alive[t] * value[t + 1] - value[t]  # [N]
        following = delta + gamma * gae_lambda * carry[t] * following
        advantage[t] = following
    return advantage, advantage + value[:-1]


_SIGNATURE = "void(f4[:,::1],f4[:,::1],b1[:,::1],b1[:,::1],f4,f4,f4[:,::1],f4[:,::1])"


def _compile(function: Callable[..., None]) -> Callable[..., None]:
    """Compile at import, so not in a timed run; from the cache on disk where one can be written."""
    try:
        compiled: Callable[..., None] = numba.njit(_SIGNATURE, cache=True)(function)
    except RuntimeError:  # neither the package nor the home directory is writable
        compiled = numba.njit(_SIGNATURE)(function)
    return compiled


@_compile
def _gae_numba(
    reward: _Floats,
    value: _Floats,
    terminated: _Bools,
    truncated: _Bools,
    gamma: np.float32,
    gae_lambda: np.float32,
    advantage: _Floats,
    return_: _Floats,
) -> None:
    num_steps, num_envs = reward.shape
    decay = gamma * gae_lambda
    zero = np.float32(0.0)
    for t in range(num_steps - 1, -1, -1):
        for n in range(num_envs):
            next_value = zero if terminated[t, n] else value[t + 1, n]
            following = zero
            if t + 1 < num_steps and not (terminated[t, n] or truncated[t, n]):
                following = advantage[t + 1, n]
            delta = reward[t, n] + gamma * next_value - value[t, n]
            advantage[t, n] = delta + decay * following
            return_[t, n] = advantage[t, n] + value[t, n]


def gae(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    advantage: Tensor,
    return_: Tensor,
) -> None:
    """Compute what `gae_reference` does into `advantage` and `return_`, both `[T, N]` float32 on the CPU.

    Allocates nothing: one pass over memory, compiled once and cached on disk.
    """
    _gae_numba(
        reward.numpy(),
        value.numpy(),
        terminated.numpy(),
        truncated.numpy(),
        np.float32(gamma),
        np.float32(gae_lambda),
        advantage.numpy(),
        return_.numpy(),
    )
