"""Running statistics: by hand, and every form against float64."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator

from fastac.kernels import column_moments, discounted_moments


@forms(column_moments)
def test_columns_by_hand(kernel):
    rows, moments = torch.tensor([[1.0, 10.0], [99.0, 99.0], [3.0, 10.0]]), torch.full((5,), 7.0, dtype=torch.float64)
    kernel(rows, torch.tensor([True, False, True]), moments)
    assert moments.tolist() == [2.0, 2.0, 10.0, 1.0, 0.0]
    kernel(rows, torch.zeros(3, dtype=torch.bool), moments)
    assert moments.tolist() == [0.0] * 5


@forms(column_moments)
@given(st.integers(0, 40), st.integers(1, 9), st.sampled_from([0.0, 1e3]), SEEDS)
def test_columns_equal_torch(kernel, num_rows, size, shift, seed):
    random = generator(seed)
    rows = shift + torch.randn(num_rows, size, generator=random)
    valid = torch.rand(num_rows, generator=random) < 0.8
    moments, want = torch.empty(1 + 2 * size, dtype=torch.float64), torch.empty(1 + 2 * size, dtype=torch.float64)
    kernel(rows, valid, moments)
    column_moments.reference(rows, valid, want)
    torch.testing.assert_close(moments, want, rtol=1e-10, atol=1e-12)


@forms(discounted_moments)
def test_discounted_by_hand(kernel):
    reward = torch.tensor([[1.0, 0.0], [2.0, 4.0], [3.0, 5.0]])
    done = torch.tensor([[False, False], [True, False], [False, False]])
    valid = torch.tensor([[True, False], [True, True], [False, True]])
    running, moments = torch.tensor([2.0, 8.0], dtype=torch.float64), torch.empty(3, dtype=torch.float64)
    kernel(reward, valid, done, 0.5, running, moments)
    # The sums are 2, 3 | 3 and 4, 6, 8.
    assert running.tolist() == [3.0, 8.0]
    assert moments.tolist() == [4.0, 4.75, (2.75**2 + 1.75**2 + 1.25**2 + 3.25**2) / 4]


@forms(discounted_moments)
@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 0.9, 1.0]), SEEDS)
def test_discounted_equal_the_reference(kernel, steps, envs, gamma, seed):
    random = generator(seed)
    reward, chance = torch.randn(steps, envs, generator=random), torch.rand(2, steps, envs, generator=random)
    start = torch.randn(envs, generator=random, dtype=torch.float64)
    got, want = ((start.clone(), torch.empty(3, dtype=torch.float64)) for _ in range(2))
    kernel(reward, chance[0] < 0.7, chance[1] < 0.2, gamma, *got)
    discounted_moments.reference(reward, chance[0] < 0.7, chance[1] < 0.2, gamma, *want)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
