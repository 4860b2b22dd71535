"""The Gaussian loss and its gradient: by hand, against torch.distributions, and every form against the reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator
from losses_support import (
    SIZES,
    SURROGATES,
    Loss,
    assert_equal_the_oracle,
    chunk,
    double_constants,
    far_from_the_clipping_range,
    numbers,
    rows_of,
    with_garbage,
)

from fastac.kernels import gaussian_loss

GAUSSIAN = forms(gaussian_loss, has_triton=True)


@GAUSSIAN
def test_gaussian_by_hand(kernel):
    mean, log_std = torch.tensor([[1.0, -1.0]]), torch.tensor([0.0, math.log(2.0)])
    action = torch.tensor([[2.0, 3.0]])  # z = 1 and 2
    d_mean, d_log_std = torch.full((1, 2), 7.0), torch.tensor([10.0, 20.0])
    d_value, terms = torch.full((1,), 7.0), torch.zeros(5, dtype=torch.float64)
    ones = torch.ones(1)
    constants = 0.0 * ones, 0.0 * ones, 3.0 * ones, 0.0 * ones, torch.tensor([True])
    numbers = "policy_gradient", 1.0, 0.0, 1.0, 0.5, 0.1, 0.2, math.inf
    kernel(mean, log_std, ones, action, *constants, *numbers, d_mean, d_log_std, d_value, terms)
    log_prob = -0.5 * (1.0 + 4.0) - math.log(2.0) - math.log(2.0 * math.pi)
    entropy = 1.0 + math.log(2.0 * math.pi) + math.log(2.0)
    assert terms.tolist() == pytest.approx([-3.0 * log_prob, 1.0, entropy, 0.0, 0.0])
    assert d_mean.tolist() == [pytest.approx([-3.0 * 1.0, -3.0 * 2.0 / 2.0])]  # -advantage z / std
    assert d_log_std.tolist() == pytest.approx([10.0 - 3.0 * (1.0 - 1.0) - 0.1, 20.0 - 3.0 * (4.0 - 1.0) - 0.1])
    assert d_value.tolist() == pytest.approx([0.5 * 2.0 * 1.0])


@st.composite
def gaussian_cases(draw):
    num_rows, num_columns = draw(SIZES), draw(st.integers(1, 7))
    random = generator(draw(SEEDS))
    shape = num_rows, num_columns
    mean, z = torch.randn(shape, generator=random), torch.randn(shape, generator=random)
    log_std, value = 0.5 * torch.randn(num_columns, generator=random), torch.randn(num_rows, generator=random)
    action = mean + z * log_std.exp()
    log_prob = (-0.5 * (z.square() + math.log(2.0 * math.pi)) - log_std).sum(dim=-1)
    written = torch.full_like(mean, 7.0), torch.zeros_like(log_std), torch.full_like(value, 7.0)
    rows = rows_of(random, num_rows, log_prob, value)
    return [
        mean,
        log_std,
        value,
        action,
        *rows,
        *numbers(draw, rows[-1]),
        *written,
        torch.zeros(5, dtype=torch.float64),
    ]


@GAUSSIAN
@given(gaussian_cases())
@settings(max_examples=50)  # each goes through the interpreter
def test_gaussian_equals_torch_distributions(kernel, case):
    def distribution(mean, log_std):
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)

    kernel(*case)
    if len(case[0]) and far_from_the_clipping_range(case, distribution(*case[:2]).log_prob(case[3]), case[2], 4):
        assert_equal_the_oracle(case, 3, distribution, case[-4:])
    assert (case[-4][~case[8]] == 0.0).all() and (case[-2][~case[8]] == 0.0).all()


@GAUSSIAN
@given(gaussian_cases())
@settings(max_examples=30)  # each goes through the interpreter
def test_gaussian_rows_that_are_not_valid_may_hold_anything(kernel, case):
    garbage = with_garbage(case, case[8], [0, 2, 3, 4, 5, 6, 7])
    kernel(*case)
    kernel(*garbage)
    for got, want in zip(garbage[-4:], case[-4:], strict=True):
        assert torch.equal(got, want)


@GAUSSIAN
def test_gaussian_chunks_add_up(kernel):
    random, num_rows = generator(2), 300
    mean, value = torch.randn(num_rows, 3, generator=random), torch.randn(num_rows, generator=random)
    action, log_std = torch.randn(num_rows, 3, generator=random), torch.tensor([0.1, -0.2, 0.3])
    rows = rows_of(random, num_rows, torch.full((num_rows,), -4.0), value)
    case = [mean, log_std, value, action, *rows, "clipped", 1.0 / int(rows[-1].sum()), 0.1, 2.0, 0.5, 0.01, 0.2, 0.3]
    whole = [torch.zeros(num_rows, 3), torch.zeros(3), torch.zeros(num_rows), torch.zeros(5, dtype=torch.float64)]
    parts = [part.clone() for part in whole]
    kernel(*case, *whole)
    for rows in (slice(0, 128), slice(128, 131), slice(131, 131), slice(131, 300)):
        kernel(*chunk([*case, *parts], rows, num_rows))
    for got, want in zip(parts, whole, strict=True):
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5, atol=1e-6)


@SURROGATES
def test_gaussian_gradcheck(surrogate):
    mean = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    log_std = 0.3 * torch.randn(3, dtype=torch.float64)
    value = torch.randn(9, dtype=torch.float64, requires_grad=True)
    constants = [torch.randn(9, 3, dtype=torch.float64), *double_constants(9, surrogate)]
    constants[1] = constants[1] - 3.0  # near the log-probs of three dimensions

    def total(mean, log_std, value):
        return Loss.apply(gaussian_loss.reference, constants, mean, log_std, value)

    assert torch.autograd.gradcheck(total, (mean, log_std.requires_grad_(), value))


def test_sizes_are_checked():
    rows = torch.zeros(4), torch.zeros(4, 2), *torch.zeros(4, 4).unbind(), torch.ones(4, dtype=torch.bool)
    written = torch.zeros(4, 2), torch.zeros(2), torch.zeros(4), torch.zeros(5, dtype=torch.float64)
    numbers = "clipped", 0.25, 0.0, 1.0, 0.5, 0.01, 0.2, math.inf
    gaussian_loss(torch.zeros(4, 2), torch.zeros(2), *rows, *numbers, *written)
    with pytest.raises(ValueError, match="the kernel takes a contiguous one of 2 elements"):
        gaussian_loss(torch.zeros(4, 2), torch.zeros(4), *rows, *numbers, *written)
