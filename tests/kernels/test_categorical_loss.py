"""The categorical loss and its gradient: by hand, against torch.distributions, and every form against the reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator
from losses_support import (
    CLIPPED,
    ENTROPY,
    KL,
    POLICY,
    SIZES,
    SURROGATES,
    VALUE,
    Loss,
    assert_equal_the_oracle,
    chunk,
    double_constants,
    far_from_the_clipping_range,
    numbers,
    rows_of,
    with_garbage,
)

from fastac.kernels import categorical_loss, sample_categorical

CATEGORICAL = forms(categorical_loss, has_triton=True)


def shares(*rows):
    return torch.tensor(rows).log()


def categorical(kernel, logits, action, surrogate="policy_gradient", **given):
    """Call a kernel on rows that are all valid unless said otherwise; return d_logits, d_value and terms."""
    num_rows = logits.shape[0]
    rows = {name: torch.zeros(num_rows) for name in ("value", "old_log_prob", "old_value", "advantage", "return_")}
    rows |= {name: torch.tensor(row) for name, row in given.items() if isinstance(row, list)}
    valid = rows.pop("valid", torch.ones(num_rows, dtype=torch.bool))
    numbers = {
        "shift": 0.0,
        "scale": 1.0,
        "vf_coef": 0.0,
        "ent_coef": 0.0,
        "clip_coef": 0.2,
        "clip_value_coef": math.inf,
    }
    numbers |= {name: number for name, number in given.items() if not isinstance(number, list)}
    written = torch.full(logits.shape, 7.0), torch.full((num_rows,), 7.0), torch.zeros(5, dtype=torch.float64)
    value, *others = rows.values()
    kernel(
        logits,
        value,
        torch.tensor(action),
        *others,
        valid,
        surrogate,
        1.0 / int(valid.sum()),
        *numbers.values(),
        *written,
    )
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


VALUES = [
    # old value, value, return, loss, slope; the range is 0.5
    (1.0, 1.25, 3.0, 1.75**2, -3.5),  # within the range
    (1.0, 2.0, 3.0, 1.5**2, 0.0),  # has moved far enough towards the return: the clipped value, 1.5, has more error
    (1.0, 0.0, 3.0, 3.0**2, -6.0),  # the wrong way: not held back
    (1.0, 3.0, 1.5, 1.5**2, 3.0),  # beyond the return
    (1.0, 2.0, 1.75, 0.25**2, 0.25),  # both errors are equal: half of the slope
]


@CATEGORICAL
@pytest.mark.parametrize(("old", "value", "return_", "loss", "slope"), VALUES)
def test_clipped_value_loss_by_hand(kernel, old, value, return_, loss, slope):
    given = {"old_value": [old, 0.0], "value": [value, 9.0], "return_": [return_, 5.0], "valid": [True, False]}
    _, d_value, terms = categorical(kernel, torch.zeros(2, 3), [0, 0], vf_coef=0.5, clip_value_coef=0.5, **given)
    assert terms[VALUE].item() == loss and d_value.tolist() == [0.5 * slope, 0.0]


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
        kernel, shares((0.25, 0.75)), [0], "clipped", old_log_prob=[old], advantage=[advantage]
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
        kernel, torch.zeros(4, 2), [0] * 4, "clipped", old_log_prob=old, valid=[True, True, True, False]
    )
    assert terms[CLIPPED].item() == pytest.approx(2 / 3)


@CATEGORICAL
def test_extreme_logits(kernel):
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4], [-torch.inf, 0.0]])
    d_logits, _, terms = categorical(kernel, logits, [0, 1, 1], advantage=[1.0, 1.0, 1.0], ent_coef=0.1)
    np.testing.assert_allclose(d_logits.numpy(), [[0.0, 0.0], [1 / 3, -1 / 3], [0.0, 0.0]], rtol=1e-6, atol=1e-9)
    assert terms[[POLICY, ENTROPY]].tolist() == pytest.approx([2e4 / 3, 0.0])


@CATEGORICAL
@SURROGATES
@pytest.mark.parametrize("clip_value_coef", [math.inf, 0.2])
@pytest.mark.parametrize("name", ["logits", "value", "old_log_prob", "old_value", "advantage", "return_"])
def test_nan_of_a_valid_row_surfaces(kernel, surrogate, name, clip_value_coef):
    logits = torch.zeros(3, 2)
    if name == "logits":
        logits[1, 1] = torch.nan
    rows = {} if name == "logits" else {name: [0.0, torch.nan, 0.0]}
    *_, terms = categorical(kernel, logits, [0, 0, 0], surrogate, **rows, clip_value_coef=clip_value_coef)
    seen = {"value": [VALUE], "return_": [VALUE], "advantage": [POLICY], "logits": [POLICY, ENTROPY]}
    clips = surrogate == "clipped"
    seen["old_log_prob"] = [POLICY, KL] if clips else []  # the policy gradient does not read them
    seen["old_value"] = [VALUE] if clip_value_coef < math.inf else []
    for term in seen[name]:
        assert terms[term].isnan()
    assert terms.isnan().any() == bool(seen[name])


@CATEGORICAL
def test_an_action_that_does_not_exist_is_not_taken_for_another(kernel):
    if kernel is categorical_loss.reference:
        pytest.skip("torch raises an IndexError")
    *_, terms = categorical(kernel, torch.zeros(3, 2), [0, 2, 0], advantage=[1.0, 1.0, 1.0])
    assert terms[POLICY].isnan()


# ---- against torch.distributions ------------------------------------------------------------------


@st.composite
def categorical_cases(draw):
    num_rows, num_actions = draw(SIZES), draw(st.integers(1, 18))
    random = generator(draw(SEEDS))
    size = draw(st.sampled_from([0.1, 1.0, 5.0]))
    logits, value = size * torch.randn(num_rows, num_actions, generator=random), torch.randn(num_rows, generator=random)
    action = torch.randint(num_actions, (num_rows,), generator=random)
    log_prob = torch.log_softmax(logits, dim=-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    written = torch.full_like(logits, 7.0), torch.full_like(value, 7.0), torch.zeros(5, dtype=torch.float64)
    rows = rows_of(random, num_rows, log_prob, value)
    return [logits, value, action, *rows, *numbers(draw, rows[-1]), *written]


@CATEGORICAL
@given(categorical_cases())
@settings(max_examples=50)  # each goes through the interpreter
def test_categorical_equals_torch_distributions(kernel, case):
    kernel(*case)
    log_prob = torch.log_softmax(case[0], dim=-1).gather(-1, case[2].unsqueeze(-1)).squeeze(-1)
    if len(case[0]) and far_from_the_clipping_range(case, log_prob, case[1], 3):
        assert_equal_the_oracle(case, 2, lambda logits: torch.distributions.Categorical(logits=logits), case[-3:])
    assert (case[-3][~case[7]] == 0.0).all() and (case[-2][~case[7]] == 0.0).all()


# ---- invalid rows and chunks ----------------------------------------------------------------------


@CATEGORICAL
@given(categorical_cases())
@settings(max_examples=30)  # each goes through the interpreter
def test_categorical_rows_that_are_not_valid_may_hold_anything(kernel, case):
    garbage = with_garbage(case, case[7], [0, 1, 2, 3, 4, 5, 6])
    kernel(*case)
    kernel(*garbage)
    for got, want in zip(garbage[-3:], case[-3:], strict=True):
        assert torch.equal(got, want)


@SURROGATES
@CATEGORICAL
def test_categorical_chunks_add_up(kernel, surrogate):
    random, num_rows = generator(1), 300
    logits, value = torch.randn(num_rows, 4, generator=random), torch.randn(num_rows, generator=random)
    action = torch.randint(4, (num_rows,), generator=random)
    rows = rows_of(random, num_rows, torch.full((num_rows,), -1.4), value)
    case = [logits, value, action, *rows, surrogate, 1.0 / int(rows[-1].sum()), 0.1, 2.0, 0.5, 0.01, 0.2, 0.3]
    whole = [torch.zeros(num_rows, 4), torch.zeros(num_rows), torch.zeros(5, dtype=torch.float64)]
    parts = [part.clone() for part in whole]
    kernel(*case, *whole)
    for rows in (slice(0, 128), slice(128, 131), slice(131, 131), slice(131, 300)):
        kernel(*chunk([*case, *parts], rows, num_rows))
    for got, want in zip(parts, whole, strict=True):
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5, atol=1e-7)


# ---- autograd -------------------------------------------------------------------------------------


@SURROGATES
@pytest.mark.parametrize("num_actions", [1, 2, 5])
def test_categorical_gradcheck(num_actions, surrogate):
    logits = torch.randn(9, num_actions, dtype=torch.float64, requires_grad=True)
    value = torch.randn(9, dtype=torch.float64, requires_grad=True)
    constants = [torch.randint(num_actions, (9,)), *double_constants(9, surrogate)]

    def total(logits, value):
        return Loss.apply(categorical_loss.reference, constants, logits, value)

    assert torch.autograd.gradcheck(total, (logits, value))


# ---- one policy, sampled and learnt ---------------------------------------------------------------


def test_the_sampler_and_the_loss_mean_the_same_log_prob():
    logits = 3.0 * torch.randn(500, 5)
    action, log_prob, entropy = torch.zeros(500, dtype=torch.int64), torch.zeros(500), torch.zeros(500)
    sample_categorical(logits, torch.rand(500), action, log_prob, entropy)
    *_, terms = categorical(
        categorical_loss, logits, action.tolist(), "clipped", old_log_prob=log_prob.tolist(), advantage=[1.0] * 500
    )
    # Unchanged parameters: ratio 1 exactly, and so nothing clipped and no KL.
    assert terms[[POLICY, KL, CLIPPED]].tolist() == [-1.0, 0.0, 0.0]
    assert terms[ENTROPY].item() == pytest.approx(entropy.double().mean().item(), rel=1e-6)


@pytest.mark.parametrize("wrong", range(11))
def test_what_would_be_read_beyond_its_end_is_refused(wrong):
    floats = [torch.zeros(4) for _ in range(6)]
    rows = floats[0], torch.zeros(4, dtype=torch.int64), *floats[1:5], torch.ones(4, dtype=torch.bool)
    args = [torch.zeros(4, 2), *rows, torch.zeros(4, 2), floats[5], torch.zeros(5, dtype=torch.float64)]
    args[wrong] = torch.zeros(2, 4).T if wrong == 0 else args[wrong][:-1]
    with pytest.raises(ValueError, match=r"the kernel takes a contiguous one of \d+ elements"):
        categorical_loss(*args[:8], "clipped", 0.25, 0.0, 1.0, 0.5, 0.01, 0.2, 0.2, *args[8:])


def test_a_surrogate_that_does_not_exist_is_refused():
    floats, action, valid = torch.zeros(7, 4).unbind(), torch.zeros(4, dtype=torch.int64), torch.ones(4).bool()
    rows = torch.zeros(4, 2), floats[0], action, *floats[1:5], valid
    written = torch.zeros(4, 2), floats[5], torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="tuple"):
        categorical_loss(*rows, "trust_region", 0.25, 0.0, 1.0, 0.5, 0.01, 0.2, 0.2, *written)
