"""Moments of a minibatch: by hand, and every twin against the float64 reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, generator, twins

from fastac.kernels import moments_reference

KERNELS = twins("batch_moments")


def moments_by(kernel, row, valid):
    moments = torch.full((3,), torch.nan, dtype=torch.float64)
    kernel(row, valid, moments)
    return moments.tolist()


@KERNELS
def test_by_hand(kernel):
    row, valid = torch.tensor([1.0, 2.0, torch.nan, 6.0]), torch.tensor([True, True, False, True])
    assert moments_by(kernel, row, valid) == pytest.approx([3.0, 3.0, 4.0 + 1.0 + 9.0])
    assert moments_by(kernel, row[:0], valid[:0]) == [0.0, 0.0, 0.0]
    assert moments_by(kernel, row[2:3], valid[2:3]) == [0.0, 0.0, 0.0]
    assert moments_by(kernel, row[3:], valid[3:]) == [1.0, 6.0, 0.0]


@KERNELS
@given(st.sampled_from([1, 2, 40, 1023, 1024, 1025, 5000]), st.sampled_from([0.0, 1.0, 1e4, -3e5]), SEEDS)
def test_equals_the_float64_reference(kernel, size, mean, seed):
    random = generator(seed)
    row = torch.randn(size, generator=random) + mean
    valid = torch.rand(size, generator=random) < 0.8
    garbage = torch.where(valid, row, torch.inf)
    want = moments_reference(row, valid)
    assert moments_by(kernel, garbage, valid) == pytest.approx(want, rel=1e-5, abs=1e-5)


@KERNELS
@pytest.mark.parametrize("number", [0.1, -123.456, 3e7])
@pytest.mark.parametrize("size", [1, 3, 700, 3000])
def test_equal_numbers_do_not_vary_at_all(kernel, number, size):
    row, valid = torch.full((size,), number), torch.arange(size) % 3 < 2
    assert moments_by(kernel, row, valid) == [valid.sum(), float(row[0]), 0.0]
    assert moments_by(kernel, row, ~valid) == ([(~valid).sum(), float(row[0]), 0.0] if size > 2 else [0.0, 0.0, 0.0])


@KERNELS
def test_numbers_may_jump(kernel):
    # Each strip's deviations are taken from the mean before it, which is of no use here.
    row = torch.randn(6000) + 1e4 * (torch.arange(6000) // 1500 % 2)
    valid = torch.ones(6000, dtype=torch.bool)
    assert moments_by(kernel, row, valid) == pytest.approx(moments_reference(row, valid), rel=1e-5)
