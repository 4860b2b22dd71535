"""Products of the backward pass: by hand, and every size around the tiles against float64."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator

from fastac.kernels import multiply_columns, multiply_rows

SIZES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 130]))


@forms(multiply_rows)
def test_rows_by_hand(kernel):
    c = torch.full((2, 1), torch.nan)
    kernel(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0], [-1.0]]), c)
    assert c.tolist() == [[8.0], [26.0]]


@forms(multiply_columns)
def test_columns_by_hand(kernel):
    a, b, c = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0], [-1.0]]), torch.full((2, 1), torch.nan)
    kernel(a, b, False, c)
    assert c.tolist() == [[7.0], [16.0]]
    kernel(a, b, True, c)
    assert c.tolist() == [[14.0], [32.0]]


@forms(multiply_rows)
@given(SIZES, SIZES, SIZES, SEEDS)
def test_rows_equal_float64(kernel, rows, size, columns, seed):
    random = generator(seed)
    a, b = torch.randn(rows, size, generator=random), torch.randn(size, columns, generator=random)
    c = torch.full((rows, columns), torch.nan)
    kernel(a, b, c)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)


@forms(multiply_columns)
@given(SIZES, SIZES, SIZES, st.booleans(), SEEDS)
def test_columns_equal_float64(kernel, size, rows, columns, adds, seed):
    random = generator(seed)
    a, b = torch.randn(size, rows, generator=random), torch.randn(size, columns, generator=random)
    c = torch.randn(rows, columns, generator=random)
    want = a.double().t() @ b.double() + (c.double() if adds else 0.0)
    kernel(a, b, adds, c)
    torch.testing.assert_close(c.double(), want, rtol=1e-4, atol=1e-4)


@forms(multiply_columns)
@given(st.integers(0, 3), SEEDS)
def test_of_no_rows_the_sum_is_zero(kernel, columns, seed):
    c = torch.randn(4, columns + 1, generator=generator(seed))
    kernel(torch.empty(0, 4), torch.empty(0, columns + 1), False, c)
    assert not c.any()


@forms(multiply_rows)
def test_of_no_columns_of_a_the_product_is_zero(kernel):
    c = torch.full((3, 20), torch.nan)
    kernel(torch.empty(3, 0), torch.empty(0, 20), c)
    assert (c == 0.0).all()
