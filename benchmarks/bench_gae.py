"""Times advantage estimation alone, the kernel against its reference (one torch operator per row and term).

Shapes are `[T, N]`: an A2C rollout of a few envs, a common PPO one, two long ones, two wide ones. It
does not time anything around the kernel, and the reference stands for no other library's loop.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.workloads import Measure
from fastac.kernels import gae, gae_reference

pytestmark = pytest.mark.bench

SHAPES = ((5, 16), (128, 8), (2048, 1), (2048, 8), (32, 1024), (128, 4096))
GAMMA, LAMBDA, DONE = 0.99, 0.95, 0.05


def make_inputs(num_steps: int, num_envs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(num_steps, num_envs, generator=generator)
    value = torch.randn(num_steps + 1, num_envs, generator=generator)
    terminated = torch.rand(num_steps, num_envs, generator=generator) < DONE
    truncated = torch.rand(num_steps, num_envs, generator=generator) < DONE
    return reward, value, terminated, truncated


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference(measure: Measure, shape: tuple[int, int]) -> None:
    inputs, size = make_inputs(*shape), shape[0] * shape[1]

    def work() -> int:
        gae_reference(*inputs, GAMMA, LAMBDA)
        return size

    measure(f"gae reference {shape}", work)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numba(measure: Measure, shape: tuple[int, int]) -> None:
    inputs, size = make_inputs(*shape), shape[0] * shape[1]
    advantage, return_ = torch.zeros(shape), torch.zeros(shape)

    def work() -> int:
        gae(*inputs, GAMMA, LAMBDA, advantage, return_)
        return size

    measure(f"gae numba {shape}", work)
