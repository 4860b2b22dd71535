"""Optimiser steps: by hand, against float64 and torch.optim, and bit for bit between the forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator, in_float64

from fastac.kernels import adam_step, rmsprop_step

ADAM, RMSPROP = forms(adam_step), forms(rmsprop_step)
SCALES = 1.0, 0.3712


def vectors(size, seed, num_slots):
    """Parameters, gradient and slots, over several orders of magnitude; the last slot is one of squares."""
    random = generator(seed)
    rows = torch.randn(2 + num_slots, size, generator=random) * torch.randn(2 + num_slots, size, generator=random).exp()
    rows[-1].abs_()
    return list(rows.unbind())


# ---- by hand --------------------------------------------------------------------------------------


def after(param, average, square):
    return [pytest.approx([number, number], rel=1e-5, abs=1e-7) for number in (param, average, square)]


@ADAM
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_two_steps_of_adam_by_hand(kernel, scale):
    param, average, square = torch.ones(2), torch.zeros(2), torch.zeros(2)
    rest = scale, 0.5, 0.9, 0.99, 2.0
    kernel(param, torch.full((2,), 2.0 / scale), average, square, *rest, 1)
    # Both averages, corrected: 0.2 / 0.1 = 2 and 0.04 / 0.01 = 4. The step is 0.5 * 2 / (sqrt(4) + 2).
    assert [row.tolist() for row in (param, average, square)] == after(0.75, 0.2, 0.04)
    kernel(param, torch.full((2,), -1.0 / scale), average, square, *rest, 2)
    # 0.9 * 0.2 - 0.1 = 0.08, over 1 - 0.81; 0.99 * 0.04 + 0.01 = 0.0496, over 1 - 0.9801.
    step = 0.5 * (0.08 / 0.19) / (math.sqrt(0.0496 / 0.0199) + 2.0)
    assert [row.tolist() for row in (param, average, square)] == after(0.75 - step, 0.08, 0.0496)


@RMSPROP
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    ("eps", "eps_in_root", "roots"), [(3.0, False, (5.0, 7.0)), (9.0, True, (math.sqrt(13.0), 5.0))]
)
def test_two_steps_of_rmsprop_by_hand(kernel, scale, eps, eps_in_root, roots):
    param, square = torch.ones(2), torch.zeros(2)
    rest = scale, 0.5, 0.75, eps, eps_in_root
    kernel(param, torch.full((2,), 4.0 / scale), square, *rest)
    assert [param.tolist(), square.tolist()] == after(1.0 - 0.5 * 4.0 / roots[0], 0.0, 4.0)[::2]  # 0.25 * 4^2
    kernel(param, torch.full((2,), -math.sqrt(52.0) / scale), square, *rest)
    expected = 1.0 - 0.5 * 4.0 / roots[0] + 0.5 * math.sqrt(52.0) / roots[1]
    assert [param.tolist(), square.tolist()] == after(expected, 0.0, 16.0)[::2]  # 0.75 * 4 + 0.25 * 52


# ---- every form -----------------------------------------------------------------------------------


def assert_equals_float64(kernel, step, rows, *rest):
    want, grad = in_float64(rows), rows[1].clone()
    kernel(*rows, *rest)
    step(*want, *rest)
    for got, expected in zip(rows, want, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(rows[1], grad)


SIZES = st.sampled_from([0, 1, 7, 8, 33, 70, 9219])


@ADAM
@given(SIZES, st.sampled_from([1, 2, 10, 100_000]), st.sampled_from(SCALES), SEEDS)
def test_adam_equals_float64(kernel, size, count, scale, seed):
    rest = scale, 1e-2, 0.9, 0.999, 1e-5, count
    assert_equals_float64(kernel, adam_step.reference, vectors(size, seed, 2), *rest)


@RMSPROP
@given(SIZES, st.booleans(), st.sampled_from(SCALES), SEEDS)
def test_rmsprop_equals_float64(kernel, size, eps_in_root, scale, seed):
    rest = scale, 1e-2, 0.99, 1e-3, eps_in_root
    assert_equals_float64(kernel, rmsprop_step.reference, vectors(size, seed, 1), *rest)


@ADAM
def test_nan_surfaces_in_adam(kernel):
    rows = vectors(37, 0, 2)
    rows[1][20] = torch.nan
    kernel(*rows, 1.0, 1e-2, 0.9, 0.999, 1e-8, 1)
    for row in rows:
        assert row.isnan().nonzero().tolist() == [[20]]


@RMSPROP
@pytest.mark.parametrize("eps_in_root", [False, True])
def test_nan_surfaces_in_rmsprop(kernel, eps_in_root):
    rows = vectors(37, 0, 1)
    rows[1][20] = torch.nan
    kernel(*rows, 1.0, 1e-2, 0.99, 1e-5, eps_in_root)
    for row in rows:
        assert row.isnan().nonzero().tolist() == [[20]]


# ---- bit for bit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "num_slots", "rest", "theirs"),
    [
        (adam_step.reference, 2, (0.9, 0.999, 1e-5), lambda p: torch.optim.Adam(p, 0.05, eps=1e-5, foreach=False)),
        (
            rmsprop_step.reference,
            1,
            (0.99, 1e-5, False),
            lambda p: torch.optim.RMSprop(p, 0.05, eps=1e-5, foreach=False),
        ),
    ],
    ids=["adam", "rmsprop"],
)
def test_the_references_are_torchs(step, num_slots, rest, theirs):
    param, *_ = vectors(37, 0, 0)
    other = torch.nn.Parameter(param.clone())
    optimizer, slots = theirs([other]), torch.zeros(num_slots, 37).unbind()
    for count in range(1, 21):
        _, grad = vectors(37, count, 0)
        step(param, grad, *slots, 1.0, 0.05, *rest, *([count] if num_slots == 2 else []))
        other.grad = grad
        optimizer.step()
    assert torch.equal(param, other.detach())


@pytest.fixture
def nearest_root(monkeypatch):
    """The root that IEEE 754 wants; torch's is MKL's where it has MKL, which is 1 ulp off now and then."""
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: torch.from_numpy(np.sqrt(x.numpy())))


# Elsewhere torch's compiler may round a * b + c once where ours rounds twice, or the reverse.
same_roundings = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs a torch that runs AVX2 or AVX-512"
)


def assert_equal_bits(kernel, step, rows, *rest):
    want = [row.clone() for row in rows]
    kernel(*rows, *rest)
    step(*want, *rest)
    for got, expected in zip(rows, want, strict=True):
        assert torch.equal(got, expected)


@same_roundings
@pytest.mark.usefixtures("nearest_root")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_adam_equals_its_reference_bit_for_bit(count, scale):
    for size in [*range(71), 9219]:
        rest = scale, 0.05, 0.9, 0.999, 1e-5, count
        assert_equal_bits(adam_step, adam_step.reference, vectors(size, size, 2), *rest)


@same_roundings
@pytest.mark.usefixtures("nearest_root")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("eps_in_root", [False, True])
def test_rmsprop_equals_its_reference_bit_for_bit(eps_in_root, scale):
    for size in [*range(71), 9219]:
        rest = scale, 0.05, 0.99, 1e-5, eps_in_root
        assert_equal_bits(rmsprop_step, rmsprop_step.reference, vectors(size, size, 1), *rest)


# ---- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda row: row[:-1], torch.Tensor.double, lambda row: row.repeat(2)[::2]])
@pytest.mark.parametrize("wrong", range(1, 4))
def test_what_would_be_read_beyond_its_end_is_refused(wrong, change):
    rows = vectors(8, 0, 2)
    adam_step(*rows, 1.0, 0.05, 0.9, 0.999, 1e-5, 1)
    rows[wrong] = change(rows[wrong])
    with pytest.raises(ValueError, match="the kernel takes a contiguous one of 8 elements"):
        adam_step(*rows, 1.0, 0.05, 0.9, 0.999, 1e-5, 1)
    if wrong < 3:
        with pytest.raises(ValueError, match="the kernel takes a contiguous one of 8 elements"):
            rmsprop_step(*rows[:3], 1.0, 0.05, 0.99, 1e-5, False)
