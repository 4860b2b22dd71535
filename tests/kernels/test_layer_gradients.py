"""The backward kernels of dense layers against autograd in float64, every size around the blocks of four."""

from functools import partial
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, generator
from torch import nn

from fastac.kernels import Derivative
from fastac.kernels.layer_gradients import deactivate, heads_backward

ACTIVATIONS = get_args(Derivative)
APPLY = {"identity": lambda z: z, "relu": torch.relu, "tanh": torch.tanh, "elu": nn.functional.elu}
ROWS, WIDTHS, FEW = st.integers(0, 9), st.sampled_from([1, 2, 3, 7, 8, 64]), st.integers(0, 9)


def forms(kernel):
    return pytest.mark.parametrize(
        "prepare", [partial(partial, kernel.reference), kernel.prepare], ids=["ref", "numba"]
    )


def assert_written(found, before, want, adds):
    for one, old, wanted in zip(found, before, want, strict=True):
        expected = wanted + old.double() if adds else wanted
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=2e-5)


def targets(*shapes, adds):
    """What a kernel writes: numbers to add to, or NaN, which it must overwrite."""
    return [torch.randn(shape) if adds else torch.full(shape, torch.nan) for shape in shapes]


@forms(deactivate)
@given(ROWS, WIDTHS, FEW, st.sampled_from(ACTIVATIONS), st.booleans(), st.booleans(), SEEDS)
def test_deactivate_is_autograds(prepare, rows, width, inputs, activation, adds, has_bias, seed):
    random = generator(seed)
    x, weight = torch.randn(rows, inputs, generator=random), torch.randn(width, inputs, generator=random)
    bias, d = torch.randn(width, generator=random), torch.randn(rows, width, generator=random)
    leaves = [t.double().requires_grad_() for t in (weight, bias)]
    z = nn.functional.linear(x.double(), *leaves)
    z.retain_grad()
    y = APPLY[activation](z)
    (y * d).sum().backward()
    found = targets((width, inputs), (width if has_bias else 0,), adds=adds)
    before = [t.clone() for t in found]
    prepare(d, y.detach().float(), x, activation, adds, *found)()
    torch.testing.assert_close(d.double(), z.grad, rtol=1e-5, atol=1e-5)
    assert_written(found, before, [leaves[0].grad, leaves[1].grad[: len(found[1])]], adds)


@forms(heads_backward)
@given(ROWS, WIDTHS, st.integers(1, 9), FEW, st.sampled_from(ACTIVATIONS), st.booleans(), st.booleans(), SEEDS)
def test_heads_are_autograds(prepare, rows, width, first, second, activation, adds, has_bias, seed):
    random = generator(seed)
    z = torch.randn(rows, width, generator=random).double().requires_grad_()
    features = APPLY[activation](z)
    weights = [torch.randn(size, width, generator=random) for size in (first, second)]
    d_outs = [torch.randn(rows, size, generator=random) for size in (first, second)]
    leaves = [(w.double().requires_grad_(), torch.zeros(len(w), dtype=torch.float64).requires_grad_()) for w in weights]
    outs = [nn.functional.linear(features, *pair) for pair in leaves]
    sum((out * d_out).sum() for out, d_out in zip(outs, d_outs, strict=True)).backward()
    shapes = (first, width), (first,), (second, width), (second,), (width if has_bias else 0,)
    *grads, d_bias = targets(*shapes, adds=adds)
    before, d = [t.clone() for t in (*grads, d_bias)], torch.full((rows, width), torch.nan)
    rows_in = features.detach().float(), d_outs[0], weights[0], d_outs[1], weights[1]
    prepare(*rows_in, activation, adds, *grads, d, d_bias)()
    torch.testing.assert_close(d.double(), z.grad, rtol=1e-5, atol=2e-5)
    want = [leaf.grad for pair in leaves for leaf in pair]
    assert_written([*grads, d_bias], before, [*want, z.grad.sum(dim=0)[: len(d_bias)]], adds)


@forms(deactivate)
def test_numbers_that_are_not_finite_stay_visible(prepare):
    for activation in ACTIVATIONS:
        for rows in (1, 4):
            d, y, x = torch.full((rows, 1), torch.nan), torch.full((rows, 1), 0.5), torch.ones(rows, 1)
            d_weight, d_bias = torch.zeros(1, 1), torch.zeros(1)
            prepare(d, y, x, activation, False, d_weight, d_bias)()
            assert d.isnan().all() and d_weight.isnan().all() and d_bias.isnan().all()


def test_what_a_kernel_cannot_read_is_refused():
    d, y, x = torch.ones(4, 3), torch.ones(4, 3), torch.ones(4, 2)
    grads = torch.ones(3, 2), torch.ones(3)
    for wrong in (
        (d, y.double(), x, "relu", False, *grads),
        (d, y, x, "relu", False, torch.ones(2, 3).t(), grads[1]),
        (d, torch.ones(4, 2), x, "relu", False, *grads),
    ):
        with pytest.raises(ValueError, match="contiguous one of"):
            deactivate.prepare(*wrong)
