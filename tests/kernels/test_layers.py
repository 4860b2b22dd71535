"""Dense layers: by hand, against float64, special numbers, and every size around the blocks of four."""

import itertools
from functools import partial
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, generator

from fastac.kernels import Activation
from fastac.kernels.layers import dense, tanh

FORMS = pytest.mark.parametrize(
    "prepare", [partial(partial, dense.reference), dense.prepare], ids=["reference", "numba"]
)
ACTIVATIONS = get_args(Activation)


@FORMS
def test_by_hand(prepare):
    x, weight = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.0, 3.0], [-1.0, 2.0, 0.5]])
    bias, y = torch.tensor([0.5, 0.0, -10.0]), torch.empty(2, 3)
    want = torch.tensor([[-0.5, 4.0, -6.0], [1.5, -2.0, -10.5]])
    for activation, expected in (("identity", want), ("relu", want.clamp(min=0.0)), ("tanh", want.tanh())):
        prepare(x, weight, bias, activation, y)()
        torch.testing.assert_close(y, expected)


@FORMS
@given(st.integers(0, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 7, 8, 64]), st.sampled_from(ACTIVATIONS), SEEDS)
def test_equals_float64(prepare, rows, inputs, outputs, activation, seed):
    random = generator(seed)
    x, weight = torch.randn(rows, inputs, generator=random), torch.randn(inputs, outputs, generator=random)
    bias, y, want = torch.randn(outputs, generator=random), torch.full((rows, outputs), torch.nan), torch.empty(0)
    want = torch.empty(rows, outputs, dtype=torch.float64)
    dense.reference(x.double(), weight.double(), bias.double(), activation, want)
    prepare(x, weight, bias, activation, y)()
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


def test_tanh_over_its_whole_range():
    x = torch.cat([torch.linspace(-12.0, 12.0, 400_001), torch.logspace(-30.0, 0.0, 10_000)]).unsqueeze(-1)
    y = torch.empty_like(x)
    dense.prepare(x, torch.ones(1, 1), torch.zeros(1), "tanh", y)()
    off = (y.double() - x.double().tanh()).abs() / x.double().tanh().abs().clamp(min=1e-30)
    assert off.max() < 4e-7
    assert y.abs().max() <= 1.0
    alone = x.clone()
    tanh.prepare(alone)()
    assert torch.equal(alone, y)


@FORMS
def test_numbers_that_are_not_finite_stay_visible(prepare):
    x = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [0.0], [1.0]])
    y = torch.empty(5, 1)
    for activation, expected in (
        ("identity", [torch.nan, torch.inf, -torch.inf, 0.0, 1.0]),
        ("relu", [torch.nan, torch.inf, 0.0, 0.0, 1.0]),
        ("tanh", [torch.nan, 1.0, -1.0, 0.0, torch.tanh(torch.tensor(1.0)).item()]),
    ):
        prepare(x, torch.ones(1, 1), torch.zeros(1), activation, y)()
        torch.testing.assert_close(y[:, 0], torch.tensor(expected), equal_nan=True)


@FORMS
def test_a_prepared_call_reads_what_the_tensors_hold_when_it_is_called(prepare):
    x, weight, bias, y = torch.ones(5, 3), torch.ones(3, 2), torch.zeros(2), torch.empty(5, 2)
    call = prepare(x, weight, bias, "identity", y)
    for factor in (1.0, 2.0):
        weight.fill_(factor)
        call()
        assert (y == 3.0 * factor).all()


def test_what_the_kernel_cannot_read_is_refused():
    x, weight, bias, y = torch.ones(4, 3), torch.ones(3, 2), torch.zeros(2), torch.empty(4, 2)
    for wrong in itertools.chain(
        [(x.t().contiguous().t(), weight, bias, y), (x.double(), weight, bias, y), (x, weight.t(), bias, y)],
        [(x, weight, torch.zeros(3), y), (x, weight, bias, torch.empty(2, 4).t())],
    ):
        with pytest.raises(ValueError, match="contiguous one of"):
            dense.prepare(*wrong[:3], "identity", wrong[3])


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.sampled_from(ACTIVATIONS), SEEDS)
def test_a_row_has_the_same_bits_in_any_company(rows, inputs, outputs, activation, seed):
    random = generator(seed)
    x, weight = torch.randn(rows, inputs, generator=random), torch.randn(inputs, outputs, generator=random)
    bias, y, alone = torch.randn(outputs, generator=random), torch.empty(rows, outputs), torch.empty(1, outputs)
    dense(x, weight, bias, activation, y)
    for row in {0, rows // 2, rows - 1}:
        dense(x[row : row + 1], weight, bias, activation, alone)
        assert torch.equal(y[row], alone[0])
