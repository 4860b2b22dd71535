"""The fused losses and their gradients: by hand, against torch.distributions, and every twin against the reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import SEEDS, generator, in_float64, twins

from fastac.kernels import (
    categorical_loss,
    gaussian_loss,
    reference,
    sample_categorical,
)

CATEGORICAL, GAUSSIAN = twins("categorical_loss"), twins("gaussian_loss")
POLICY, VALUE, ENTROPY, KL, CLIPPED = range(5)


def shares(*rows):
    return torch.tensor(rows).log()


def categorical(kernel, logits, action, **given):
    """Call a kernel on rows that are all valid unless said otherwise; return d_logits, d_value and terms."""
    num_rows = logits.shape[0]
    rows = {name: torch.zeros(num_rows) for name in ("value", "old_log_prob", "advantage", "return_")}
    rows |= {name: torch.tensor(row) for name, row in given.items() if isinstance(row, list)}
    valid = rows.pop("valid", torch.ones(num_rows, dtype=torch.bool))
    numbers = {"shift": 0.0, "scale": 1.0, "vf_coef": 0.0, "ent_coef": 0.0, "clip_coef": None}
    numbers |= {name: number for name, number in given.items() if not isinstance(number, list)}
    written = torch.full(logits.shape, 7.0), torch.full((num_rows,), 7.0), torch.zeros(5, dtype=torch.float64)
    columns = rows["value"], torch.tensor(action), rows["old_log_prob"], rows["advantage"], rows["return_"], valid
    kernel(logits, *columns, 1.0 / int(valid.sum()), *numbers.values(), *written)
    return written


# ---- by hand --------------------------------------------------------------------------------------


@CATEGORICAL
def test_policy_gradient_by_hand(kernel):
    logits = shares((0.5, 0.5), (0.2, 0.8))
    d_logits, d_value, terms = categorical(kernel, logits, [0, 1], advantage=[2.0, -3.0])
    assert terms[POLICY].item() == pytest.approx((-2.0 * math.log(0.5) + 3.0 * math.log(0.8)) / 2)
    # d -log p(chosen) / d logits = p - one-hot, times the advantage, over two rows.
    expected = [[2.0 * (0.5 - 1.0) / 2, 2.0 * 0.5 / 2], [-3.0 * 0.2 / 2, -3.0 * (0.8 - 1.0) / 2]]
    np.testing.assert_allclose(d_logits.numpy(), expected, rtol=1e-5)
    assert d_value.tolist() == [0.0, 0.0]
    assert terms[[VALUE, KL, CLIPPED]].tolist() == [0.0, 0.0, 0.0]


@CATEGORICAL
def test_advantages_are_shifted_then_scaled(kernel):
    logits = shares((0.5, 0.5), (0.5, 0.5))
    *_, terms = categorical(kernel, logits, [0, 1], advantage=[2.0, 6.0], shift=1.0, scale=3.0)
    assert terms[POLICY].item() == pytest.approx(math.log(2.0) * 3.0 * (1.0 + 5.0) / 2)


@CATEGORICAL
def test_nearly_equal_advantages_keep_their_differences(kernel):
    # 1000 and the float32 after it, standardised: -1 and 1. In float32 alone they would not be.
    step = 2.0**-14
    shift, scale = 1000.0 + step / 2, 2.0 / step
    d_logits, *_ = categorical(
        kernel, torch.zeros(2, 2), [0, 0], advantage=[1000.0, 1000.0 + step], shift=shift, scale=scale
    )
    assert d_logits.tolist() == [[0.25, -0.25], [-0.25, 0.25]]


@CATEGORICAL
def test_value_loss_by_hand(kernel):
    d_logits, d_value, terms = categorical(
        kernel, torch.zeros(2, 3), [0, 0], value=[1.0, 2.0], return_=[3.0, -2.0], vf_coef=0.5
    )
    assert terms[VALUE].item() == pytest.approx((4.0 + 16.0) / 2)  # without the coefficient
    assert d_value.tolist() == pytest.approx([0.5 * 2.0 * -2.0 / 2, 0.5 * 2.0 * 4.0 / 2])
    assert (d_logits == 0.0).all()


@CATEGORICAL
def test_entropy_by_hand(kernel):
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    entropy = -(p * p.log()).sum()
    d_logits, _, terms = categorical(kernel, p.log().float().unsqueeze(0), [1], ent_coef=0.1)
    assert terms[ENTROPY].item() == pytest.approx(entropy.item())
    # dH/dz_a = -p_a (log p_a + H), and entropy is a reward, not a loss.
    np.testing.assert_allclose(d_logits[0].numpy(), (0.1 * p * (p.log() + entropy)).numpy(), rtol=1e-4)


RATIOS = [
    # ratio, advantage, surrogate, slope of it with respect to the ratio; the range is 0.8 to 1.2
    (1.0, 2.0, 2.0, 2.0),
    (1.1, -2.0, -2.2, -2.0),
    (1.5, 2.0, 2.4, 0.0),  # enough already
    (0.5, -2.0, -1.6, 0.0),
    (0.5, 2.0, 1.0, 2.0),  # the wrong way: not held back
    (1.5, -2.0, -3.0, -2.0),
    (1.5, 0.0, 0.0, 0.0),
]


@CATEGORICAL
@pytest.mark.parametrize(("ratio", "advantage", "surrogate", "slope"), RATIOS)
def test_clipped_surrogate_by_hand(kernel, ratio, advantage, surrogate, slope):
    old = math.log(0.25 / ratio)
    d_logits, _, terms = categorical(
        kernel, shares((0.25, 0.75)), [0], old_log_prob=[old], advantage=[advantage], clip_coef=0.2
    )
    assert terms[POLICY].item() == pytest.approx(-surrogate, rel=1e-5)
    assert terms[KL].item() == pytest.approx(ratio - 1.0 - math.log(ratio), abs=1e-6)
    assert terms[CLIPPED].item() == float(abs(ratio - 1.0) > 0.2)
    # d ratio / d logits = ratio (one-hot - p)
    np.testing.assert_allclose(d_logits[0].numpy(), [-slope * ratio * 0.75, slope * ratio * 0.75], rtol=1e-4, atol=1e-7)


@CATEGORICAL
def test_clip_fraction_is_a_share_of_valid_rows(kernel):
    old = [math.log(0.5 / ratio) for ratio in (1.0, 1.5, 0.5, 1.5)]
    *_, terms = categorical(
        kernel, torch.zeros(4, 2), [0] * 4, old_log_prob=old, clip_coef=0.2, valid=[True, True, True, False]
    )
    assert terms[CLIPPED].item() == pytest.approx(2 / 3)


@CATEGORICAL
def test_extreme_logits(kernel):
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4], [-torch.inf, 0.0]])
    d_logits, _, terms = categorical(kernel, logits, [0, 1, 1], advantage=[1.0, 1.0, 1.0], ent_coef=0.1)
    np.testing.assert_allclose(d_logits.numpy(), [[0.0, 0.0], [1 / 3, -1 / 3], [0.0, 0.0]], rtol=1e-6, atol=1e-9)
    assert terms[[POLICY, ENTROPY]].tolist() == pytest.approx([2e4 / 3, 0.0])


@CATEGORICAL
@pytest.mark.parametrize("clip_coef", [None, 0.2])
@pytest.mark.parametrize("name", ["logits", "value", "old_log_prob", "advantage", "return_"])
def test_nan_of_a_valid_row_surfaces(kernel, clip_coef, name):
    logits = torch.zeros(3, 2)
    if name == "logits":
        logits[1, 1] = torch.nan
    rows = {} if name == "logits" else {name: [0.0, torch.nan, 0.0]}
    *_, terms = categorical(kernel, logits, [0, 0, 0], clip_coef=clip_coef, **rows)
    seen = {"value": [VALUE], "return_": [VALUE], "advantage": [POLICY], "logits": [POLICY, ENTROPY]}
    policy_only = [POLICY, KL] if clip_coef else []  # A2C does not read the old log-probs
    for term in seen.get(name, policy_only):
        assert terms[term].isnan()
    assert terms.isnan().any() == bool(name != "old_log_prob" or clip_coef)


@CATEGORICAL
def test_an_action_that_does_not_exist_is_not_taken_for_another(kernel):
    if kernel is reference.categorical_loss:
        pytest.skip("torch raises an IndexError")
    *_, terms = categorical(kernel, torch.zeros(3, 2), [0, 2, 0], advantage=[1.0, 1.0, 1.0])
    assert terms[POLICY].isnan()


@GAUSSIAN
def test_gaussian_by_hand(kernel):
    mean, log_std = torch.tensor([[1.0, -1.0]]), torch.tensor([0.0, math.log(2.0)])
    action = torch.tensor([[2.0, 3.0]])  # z = 1 and 2
    d_mean, d_log_std = torch.full((1, 2), 7.0), torch.tensor([10.0, 20.0])
    d_value, terms = torch.full((1,), 7.0), torch.zeros(5, dtype=torch.float64)
    ones = torch.ones(1)
    constants = 0.0 * ones, 3.0 * ones, 0.0 * ones, torch.tensor([True])
    kernel(mean, log_std, ones, action, *constants, 1.0, 0.0, 1.0, 0.5, 0.1, None, d_mean, d_log_std, d_value, terms)
    log_prob = -0.5 * (1.0 + 4.0) - math.log(2.0) - math.log(2.0 * math.pi)
    entropy = 1.0 + math.log(2.0 * math.pi) + math.log(2.0)
    assert terms.tolist() == pytest.approx([-3.0 * log_prob, 1.0, entropy, 0.0, 0.0])
    assert d_mean.tolist() == [pytest.approx([-3.0 * 1.0, -3.0 * 2.0 / 2.0])]  # -advantage z / std
    assert d_log_std.tolist() == pytest.approx([10.0 - 3.0 * (1.0 - 1.0) - 0.1, 20.0 - 3.0 * (4.0 - 1.0) - 0.1])
    assert d_value.tolist() == pytest.approx([0.5 * 2.0 * 1.0])


# ---- against torch.distributions ------------------------------------------------------------------


def numbers(draw):
    clip_coef = draw(st.sampled_from([None, 0.1, 0.3]))
    coefs = [draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.sampled_from([0.0, 0.01]))]
    return [draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from([1.0, 2.5])), *coefs, clip_coef]


def rows_of(random, num_rows, log_prob):
    """Old log-probs not far from the current, so that ratios fall on both sides of the clipping range."""
    old = log_prob + 0.3 * torch.randn(num_rows, generator=random)
    advantage, return_ = (torch.randn(num_rows, generator=random) for _ in range(2))
    valid = torch.rand(num_rows, generator=random) < 0.8
    inverse_count = 1.0 / max(int(valid.sum()), 1)
    return [old, advantage, return_, valid, inverse_count]


SIZES = st.sampled_from([0, 1, 2, 5, 127, 128, 129, 300])


@st.composite
def categorical_cases(draw):
    num_rows, num_actions = draw(SIZES), draw(st.integers(1, 18))
    random = generator(draw(SEEDS))
    size = draw(st.sampled_from([0.1, 1.0, 5.0]))
    logits, value = size * torch.randn(num_rows, num_actions, generator=random), torch.randn(num_rows, generator=random)
    action = torch.randint(num_actions, (num_rows,), generator=random)
    log_prob = torch.log_softmax(logits, dim=-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    written = torch.full_like(logits, 7.0), torch.full_like(value, 7.0), torch.zeros(5, dtype=torch.float64)
    return [logits, value, action, *rows_of(random, num_rows, log_prob), *numbers(draw), *written]


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
    rows = rows_of(random, num_rows, log_prob)
    return [mean, log_std, value, action, *rows, *numbers(draw), *written, torch.zeros(5, dtype=torch.float64)]


def oracle(distribution, value, action, old_log_prob, advantage, return_, valid, inverse_count, *numbers):
    """The formulas of the papers, on torch.distributions: total and terms."""
    shift, scale, vf_coef, ent_coef, clip_coef = numbers
    log_prob, entropy = distribution.log_prob(action), distribution.entropy()
    effective = (advantage - shift) * scale
    ratio = (log_prob - old_log_prob).exp()
    if clip_coef is None:
        surrogate, kl, clipped = log_prob * effective, torch.zeros_like(ratio), torch.zeros_like(ratio)
    else:
        limited = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
        surrogate = torch.min(ratio * effective, limited * effective)
        kl, clipped = (ratio - 1.0) - ratio.log(), ((ratio - 1.0).abs() > clip_coef).double()
    rows = torch.stack([-surrogate, (value - return_).square(), entropy, kl, clipped])
    terms = torch.where(valid, rows, 0.0).sum(dim=1) * inverse_count
    return terms[POLICY] + vf_coef * terms[VALUE] - ent_coef * terms[ENTROPY], terms.detach()


# torch.distributions take no 0 rows, so those are left to the test of chunks.


def assert_equal_the_oracle(case, num_inputs, distribution_of, got):
    """Hold gradients and terms to autograd through the oracle, in float64."""
    inputs = [tensor.double().requires_grad_() for tensor in case[:num_inputs]]
    rest = in_float64(case[num_inputs : num_inputs + 11])
    total, terms = oracle(distribution_of(*inputs[:-1]), inputs[-1], *rest)
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    *got_gradients, got_terms = got
    assert_close(got_terms, terms, rest[4])
    for gradient, want in zip(got_gradients, gradients, strict=True):
        np.testing.assert_allclose(gradient.double().numpy(), want.numpy(), rtol=2e-4, atol=2e-5)


def assert_close(got_terms, terms, valid):
    np.testing.assert_allclose(got_terms[:4].numpy(), terms[:4].numpy(), rtol=1e-4, atol=1e-5)
    # A ratio at the very end of the range may be rounded to its other side.
    assert abs(got_terms[CLIPPED] - terms[CLIPPED]) <= 1.01 / max(int(valid.sum()), 1)


def far_from_the_clipping_range(case, log_prob, first):
    """Whether no ratio is so close to an end of the range that rounding decides on its gradient."""
    old_log_prob, clip_coef = case[first], case[first + 9]
    distance = ((log_prob - old_log_prob).exp() - 1.0).abs() - (clip_coef or 10.0)
    return bool((distance.abs() > 1e-5).all())


@CATEGORICAL
@given(categorical_cases())
def test_categorical_equals_torch_distributions(kernel, case):
    kernel(*case)
    log_prob = torch.log_softmax(case[0], dim=-1).gather(-1, case[2].unsqueeze(-1)).squeeze(-1)
    if len(case[0]) and far_from_the_clipping_range(case, log_prob, 3):
        assert_equal_the_oracle(case, 2, lambda logits: torch.distributions.Categorical(logits=logits), case[-3:])
    assert (case[-3][~case[6]] == 0.0).all() and (case[-2][~case[6]] == 0.0).all()


@GAUSSIAN
@given(gaussian_cases())
def test_gaussian_equals_torch_distributions(kernel, case):
    def distribution(mean, log_std):
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)

    kernel(*case)
    if len(case[0]) and far_from_the_clipping_range(case, distribution(*case[:2]).log_prob(case[3]), 4):
        assert_equal_the_oracle(case, 3, distribution, case[-4:])
    assert (case[-4][~case[7]] == 0.0).all() and (case[-2][~case[7]] == 0.0).all()


# ---- invalid rows and chunks ----------------------------------------------------------------------


def with_garbage(case, valid, columns):
    """The case with NaN, infinities and an action that does not exist in rows that are not valid."""
    garbage = list(case)
    for k in columns:
        numbers = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e38])
        bad = numbers[torch.arange(case[k].numel()) % 4].reshape(case[k].shape)
        bad = bad if case[k].is_floating_point() else torch.full_like(case[k], -(2**40))
        mask = valid.reshape(-1, *[1] * (case[k].dim() - 1))
        garbage[k] = torch.where(mask, case[k], bad)
    return [part.clone() if isinstance(part, torch.Tensor) else part for part in garbage]


@CATEGORICAL
@given(categorical_cases())
@settings(max_examples=30)  # each goes through the interpreter
def test_categorical_rows_that_are_not_valid_may_hold_anything(kernel, case):
    garbage = with_garbage(case, case[6], [0, 1, 2, 3, 4, 5])
    kernel(*case)
    kernel(*garbage)
    for got, want in zip(garbage[-3:], case[-3:], strict=True):
        assert torch.equal(got, want)


@GAUSSIAN
@given(gaussian_cases())
@settings(max_examples=30)  # each goes through the interpreter
def test_gaussian_rows_that_are_not_valid_may_hold_anything(kernel, case):
    garbage = with_garbage(case, case[7], [0, 2, 3, 4, 5, 6])
    kernel(*case)
    kernel(*garbage)
    for got, want in zip(garbage[-4:], case[-4:], strict=True):
        assert torch.equal(got, want)


def chunk(case, rows, num_rows):
    """The arguments of one chunk; what is not per row is shared."""
    return [part[rows] if isinstance(part, torch.Tensor) and len(part) == num_rows else part for part in case]


@pytest.mark.parametrize("clip_coef", [None, 0.2])
@CATEGORICAL
def test_categorical_chunks_add_up(kernel, clip_coef):
    random, num_rows = generator(1), 300
    logits, value = torch.randn(num_rows, 4, generator=random), torch.randn(num_rows, generator=random)
    action = torch.randint(4, (num_rows,), generator=random)
    rows = rows_of(random, num_rows, torch.full((num_rows,), -1.4))
    case = [logits, value, action, *rows, 0.1, 2.0, 0.5, 0.01, clip_coef]
    whole = [torch.zeros(num_rows, 4), torch.zeros(num_rows), torch.zeros(5, dtype=torch.float64)]
    parts = [part.clone() for part in whole]
    kernel(*case, *whole)
    for rows in (slice(0, 128), slice(128, 131), slice(131, 131), slice(131, 300)):
        kernel(*chunk([*case, *parts], rows, num_rows))
    for got, want in zip(parts, whole, strict=True):
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5, atol=1e-7)


@GAUSSIAN
def test_gaussian_chunks_add_up(kernel):
    random, num_rows = generator(2), 300
    mean, value = torch.randn(num_rows, 3, generator=random), torch.randn(num_rows, generator=random)
    action, log_std = torch.randn(num_rows, 3, generator=random), torch.tensor([0.1, -0.2, 0.3])
    rows = rows_of(random, num_rows, torch.full((num_rows,), -4.0))
    case = [mean, log_std, value, action, *rows, 0.1, 2.0, 0.5, 0.01, 0.2]
    whole = [torch.zeros(num_rows, 3), torch.zeros(3), torch.zeros(num_rows), torch.zeros(5, dtype=torch.float64)]
    parts = [part.clone() for part in whole]
    kernel(*case, *whole)
    for rows in (slice(0, 128), slice(128, 131), slice(131, 131), slice(131, 300)):
        kernel(*chunk([*case, *parts], rows, num_rows))
    for got, want in zip(parts, whole, strict=True):
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5, atol=1e-6)


# ---- autograd -------------------------------------------------------------------------------------


def double_rows(num_rows):
    old = -1.0 + 0.5 * torch.randn(num_rows, dtype=torch.float64)
    advantage, return_ = (torch.randn(num_rows, dtype=torch.float64) for _ in range(2))
    valid = torch.arange(num_rows) % 4 != 2
    return [old, advantage, return_, valid, 1.0 / int(valid.sum()), 0.1, 1.5, 0.5, 0.01]


class _Loss(torch.autograd.Function):
    """A kernel's loss, with the gradient that it computes."""

    @staticmethod
    def forward(ctx, kernel, constants, *inputs):
        gradients = [torch.zeros_like(tensor) for tensor in inputs]
        terms = torch.zeros(5, dtype=torch.float64)
        kernel(*inputs, *constants, *gradients, terms)
        ctx.save_for_backward(*gradients)
        *_, vf_coef, ent_coef, _ = constants
        return terms[0] + vf_coef * terms[1] - ent_coef * terms[2]

    @staticmethod
    def backward(ctx, d_total):
        return None, None, *(d_total * gradient for gradient in ctx.saved_tensors)


@pytest.mark.parametrize("clip_coef", [None, 0.2])
@pytest.mark.parametrize("num_actions", [1, 2, 5])
def test_categorical_gradcheck(num_actions, clip_coef):
    logits = torch.randn(9, num_actions, dtype=torch.float64, requires_grad=True)
    value = torch.randn(9, dtype=torch.float64, requires_grad=True)
    constants = [torch.randint(num_actions, (9,)), *double_rows(9), clip_coef]

    def total(logits, value):
        return _Loss.apply(reference.categorical_loss, constants, logits, value)

    assert torch.autograd.gradcheck(total, (logits, value))


@pytest.mark.parametrize("clip_coef", [None, 0.2])
def test_gaussian_gradcheck(clip_coef):
    mean = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    log_std = 0.3 * torch.randn(3, dtype=torch.float64)
    value = torch.randn(9, dtype=torch.float64, requires_grad=True)
    constants = [torch.randn(9, 3, dtype=torch.float64), *double_rows(9), clip_coef]
    constants[1] = constants[1] - 3.0  # near the log-probs of three dimensions

    def total(mean, log_std, value):
        return _Loss.apply(reference.gaussian_loss, constants, mean, log_std, value)

    assert torch.autograd.gradcheck(total, (mean, log_std.requires_grad_(), value))


# ---- one policy, sampled and learnt ---------------------------------------------------------------


def test_the_sampler_and_the_loss_mean_the_same_log_prob():
    logits = 3.0 * torch.randn(500, 5)
    action, log_prob, entropy = torch.zeros(500, dtype=torch.int64), torch.zeros(500), torch.zeros(500)
    sample_categorical(logits, torch.rand(500), action, log_prob, entropy)
    *_, terms = categorical(
        categorical_loss, logits, action.tolist(), old_log_prob=log_prob.tolist(), advantage=[1.0] * 500, clip_coef=0.2
    )
    # Unchanged parameters: ratio 1 exactly, and so nothing clipped and no KL.
    assert terms[[POLICY, KL, CLIPPED]].tolist() == [-1.0, 0.0, 0.0]
    assert terms[ENTROPY].item() == pytest.approx(entropy.double().mean().item(), rel=1e-6)


def test_float64_reaches_the_compiled_kernels():
    case = [torch.zeros(3, 2, dtype=torch.float64), *torch.zeros(5, 3, dtype=torch.float64).unbind()]
    logits, value, old, advantage, return_, d_value = case
    rows = value, torch.tensor([0, 1, 0]), old, advantage, return_, torch.ones(3, dtype=torch.bool)
    terms = torch.zeros(5, dtype=torch.float64)
    categorical_loss(logits, *rows, 1 / 3, 0.0, 1.0, 0.5, 0.01, None, torch.zeros_like(logits), d_value, terms)
    assert terms[ENTROPY].item() == pytest.approx(math.log(2.0), rel=1e-15)


@pytest.mark.parametrize("wrong", range(10))
def test_what_would_be_read_beyond_its_end_is_refused(wrong):
    floats = [torch.zeros(4) for _ in range(5)]
    rows = floats[0], torch.zeros(4, dtype=torch.int64), *floats[1:4], torch.ones(4, dtype=torch.bool)
    args = [torch.zeros(4, 2), *rows, torch.zeros(4, 2), floats[4], torch.zeros(5, dtype=torch.float64)]
    args[wrong] = torch.zeros(2, 4).T if wrong == 0 else args[wrong][:-1]
    with pytest.raises(ValueError, match=r"the kernel takes a contiguous one of \d+ elements"):
        categorical_loss(*args[:7], 0.25, 0.0, 1.0, 0.5, 0.01, None, *args[7:])


def test_gaussian_sizes_are_checked():
    rows = torch.zeros(4), torch.zeros(4, 2), *torch.zeros(3, 4).unbind(), torch.ones(4, dtype=torch.bool)
    written = torch.zeros(4, 2), torch.zeros(2), torch.zeros(4), torch.zeros(5, dtype=torch.float64)
    numbers = 0.25, 0.0, 1.0, 0.5, 0.01, None
    gaussian_loss(torch.zeros(4, 2), torch.zeros(2), *rows, *numbers, *written)
    with pytest.raises(ValueError, match="the kernel takes a contiguous one of 2 elements"):
        gaussian_loss(torch.zeros(4, 2), torch.zeros(4), *rows, *numbers, *written)


def test_the_reference_takes_float64_too():
    # The oracle of this file's fuzzing is independent of it; here, that it does not fall back to float32.
    args = in_float64(
        [torch.randn(5, 3), torch.rand(5), torch.zeros(5, dtype=torch.int64), torch.zeros(5), torch.zeros(5)]
    )
    reference.sample_categorical(*args)
    expected = torch.distributions.Categorical(logits=args[0]).entropy()
    np.testing.assert_allclose(args[4].numpy(), expected.numpy(), rtol=1e-14)
