"""Sums of gradients and of their squares: by hand, against float64, and the same bits however the work is divided."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator

from fastac.kernels import SQUARES_BLOCK, clip_gradient, num_blocks, sum_gradients, sum_squares

SIZES = st.sampled_from([1, 7, SQUARES_BLOCK - 1, SQUARES_BLOCK, SQUARES_BLOCK + 16, 3 * SQUARES_BLOCK + 48])


def empty_squares(size):
    return torch.full((num_blocks(size),), 7.0, dtype=torch.float64)


@forms(sum_squares)
@given(SIZES, SEEDS)
def test_squares_equal_float64(kernel, size, seed):
    numbers, squares = torch.randn(size, generator=generator(seed)), empty_squares(size)
    kernel(numbers, squares)
    for block, found in zip(numbers.split(SQUARES_BLOCK), squares, strict=True):
        torch.testing.assert_close(found, block.double().square().sum(), rtol=1e-12, atol=1e-12)


@forms(sum_squares)
def test_squares_show_what_is_not_finite(kernel):
    for number in (torch.nan, torch.inf, -torch.inf):
        squares = empty_squares(3)
        kernel(torch.tensor([1.0, number, 2.0]), squares)
        assert not squares.isfinite()


@forms(sum_gradients)
def test_gradients_are_added_in_a_tree(kernel):
    """1e8 swallows 1: in row order the two ones would be lost, and in the tree only one pair is."""
    grads = torch.tensor([[1e8], [1.0], [-1e8], [1.0], [3.0]])
    total, squares = torch.zeros(1), empty_squares(1)
    kernel(grads[:4], 0, 1, total, squares)
    assert total.item() == 0.0
    kernel(grads[[1, 3, 0, 2]].contiguous(), 0, 1, total, squares)
    assert total.item() == 2.0 and squares.item() == 4.0
    kernel(grads[[1, 3, 0, 2, 4]].contiguous(), 0, 1, total, squares)
    assert total.item() == 5.0 and squares.item() == 25.0


@forms(sum_gradients)
@given(st.integers(1, 9), SIZES, SEEDS)
def test_sums_have_the_bits_of_the_reference(kernel, count, size, seed):
    grads = torch.randn(count, size, generator=generator(seed))
    (total, squares), (want, want_squares) = ((torch.zeros(size), empty_squares(size)) for _ in range(2))
    kernel(grads, 0, size, total, squares)
    sum_gradients.reference(grads, 0, size, want, want_squares)
    assert torch.equal(total, want)
    torch.testing.assert_close(squares, want_squares, rtol=1e-12, atol=1e-12)


@forms(sum_gradients)
@given(st.integers(1, 4), SEEDS)
def test_parts_have_the_bits_of_the_whole(kernel, count, seed):
    size = 3 * SQUARES_BLOCK + 48
    grads = torch.randn(count, size, generator=generator(seed))
    (total, squares), (want, want_squares) = ((torch.full((size,), 7.0), empty_squares(size)) for _ in range(2))
    kernel(grads, 0, size, want, want_squares)
    kernel(grads, SQUARES_BLOCK, 3 * SQUARES_BLOCK, total, squares)
    assert (total[:SQUARES_BLOCK] == 7.0).all() and (total[3 * SQUARES_BLOCK :] == 7.0).all()
    assert squares[[0, 3]].tolist() == [7.0, 7.0]
    kernel(grads, 0, SQUARES_BLOCK, total, squares)
    kernel(grads, 3 * SQUARES_BLOCK, size, total, squares)
    assert torch.equal(total, want) and torch.equal(squares, want_squares)
    sum_squares(want, squares)
    assert torch.equal(squares, want_squares) or kernel is sum_gradients.reference


@forms(sum_gradients)
def test_subtrees_can_be_summed_before(kernel):
    grads = torch.randn(8, 100, generator=generator(3))
    want, squares, total = torch.zeros(100), empty_squares(100), torch.zeros(2, 100)
    kernel(grads, 0, 100, want, squares)
    kernel(grads[:4].contiguous(), 0, 100, total[0], squares)
    kernel(grads[4:].contiguous(), 0, 100, total[1], squares)
    found = torch.zeros(100)
    kernel(total, 0, 100, found, squares)
    assert torch.equal(found, want)


# --- norm and clipping ---------------------------------------------------------------------------


def clip(kernel, squares, terms=(0.0,) * 5, max_norm=0.5, count=3.0):
    norm, scale, steps = (torch.full((1,), value, dtype=torch.float64) for value in (7.0, 7.0, count))
    double = {"dtype": torch.float64}
    parts, found = torch.tensor([terms, (1.0,) * 5], **double), torch.full((5,), 7.0, **double)
    kernel(torch.tensor(squares, **double), parts, max_norm, found, norm, scale, steps)
    torch.testing.assert_close(found, parts.sum(dim=0), rtol=0.0, atol=0.0, equal_nan=True)
    return norm.item(), scale.item(), steps.item()


@forms(clip_gradient)
def test_a_gradient_is_clipped_to_the_largest_norm(kernel):
    assert clip(kernel, [9.0, 16.0], max_norm=0.5) == (5.0, 0.5 / (5.0 + 1e-6), 4.0)
    assert clip(kernel, [9.0, 16.0], max_norm=5.0) == (5.0, 1.0, 4.0)
    assert clip(kernel, [9.0, 16.0], max_norm=math.inf) == (5.0, 1.0, 4.0)
    assert clip(kernel, [0.0], max_norm=0.5) == (0.0, 1.0, 4.0)


@forms(clip_gradient)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_no_step_is_taken_with_what_is_not_finite(kernel, number):
    norm, scale, steps = clip(kernel, [1.0, number])
    assert not math.isfinite(norm) and math.isnan(scale) and steps == 3.0
    norm, scale, steps = clip(kernel, [4.0], terms=(0.0, 0.0, -number, 0.0, 0.0))
    assert norm == 2.0 and math.isnan(scale) and steps == 3.0
