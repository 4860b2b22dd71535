"""Copies of rows, by index or as they are, of any type; and whether numbers are finite."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator

from fastac.kernels import as_bytes, copy_bytes, find_nonfinite, gather_rows

TYPES = [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16]


@pytest.mark.parametrize("dtype", TYPES)
@forms(gather_rows)
@given(st.integers(1, 20), st.integers(0, 30), st.sampled_from([(), (1,), (3,), (2, 5)]), SEEDS)
def test_rows_are_copied_bit_for_bit(kernel, dtype, num_rows, num_taken, shape, seed):
    random = generator(seed)
    rows = (100 * torch.randn(num_rows, *shape, generator=random)).to(dtype)
    index = torch.randint(num_rows, (num_taken,), generator=random)
    out = torch.zeros(max(num_taken, 1), *shape, dtype=dtype)[:num_taken]
    if num_taken:
        kernel(as_bytes(rows), index, as_bytes(out))
    assert torch.equal(out, rows[index])


def test_a_nan_keeps_its_bits():
    rows = torch.tensor([0x7FC01234, 0x7F800001], dtype=torch.int32).view(torch.float32)
    out = torch.empty(2)
    gather_rows(as_bytes(rows), torch.tensor([1, 0]), as_bytes(out))
    assert out.view(torch.int32).tolist() == [0x7F800001, 0x7FC01234]


@forms(copy_bytes)
@given(st.sampled_from(TYPES), st.integers(1, 300), SEEDS)
def test_a_copy_has_the_bits_of_its_source(kernel, dtype, size, seed):
    source = (100 * torch.randn(size, generator=generator(seed))).to(dtype)
    target = torch.zeros_like(source)
    kernel(source.view(torch.uint8), target.view(torch.uint8))
    assert torch.equal(source, target)


@forms(find_nonfinite)
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 3e38, 0.0])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_one_broken_number_among_many_is_noted(kernel, number, size):
    numbers, broken = 1e38 * torch.randn(size, generator=generator(size)).clamp(-3, 3), torch.full((1,), 7)
    kernel(numbers, broken)
    assert broken.item() == 0
    numbers[size // 2] = number
    kernel(numbers, broken)
    assert broken.item() == (abs(number) > 1e38 * 4 or number != number)
