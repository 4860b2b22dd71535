"""Sampling actions: by hand, against torch.distributions, and every form against the float64 reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator, in_float64

from fastac.kernels import greedy_categorical, mask_logits, sample_categorical, sample_gaussian

KERNELS = forms(sample_categorical, has_triton=True)
BELOW_ONE = 1.0 - 2.0**-24


def sample(kernel, logits, uniform):
    num_rows = logits.shape[0]
    action = torch.full((num_rows,), -7)
    log_prob, entropy = (torch.full((num_rows,), 7.0) for _ in range(2))
    kernel(logits, uniform, action, log_prob, entropy)
    return action, log_prob, entropy


def logits_of(*probabilities):
    return torch.tensor([probabilities]).log()


@KERNELS
@pytest.mark.parametrize(
    ("probabilities", "uniform", "action"),
    [
        ((0.5, 0.5), 0.0, 0),
        ((0.5, 0.5), 0.5 - 2.0**-25, 0),  # the last float32 before
        ((0.5, 0.5), 0.5, 1),  # on the entry: not above
        ((0.5, 0.5), BELOW_ONE, 1),
        ((0.25, 0.25, 0.25, 0.25), 0.0, 0),
        ((0.25, 0.25, 0.25, 0.25), 0.25, 1),
        ((0.25, 0.25, 0.25, 0.25), 0.5, 2),
        ((0.25, 0.25, 0.25, 0.25), 0.74, 2),
        ((0.25, 0.25, 0.25, 0.25), 0.75, 3),
        ((0.125, 0.875), 0.124, 0),
        ((0.125, 0.875), 0.126, 1),
        ((0.875, 0.125), 0.874, 0),
        ((0.2, 0.3, 0.5), 0.49, 1),
        ((0.2, 0.3, 0.5), 0.51, 2),
        ((1.0,), 0.0, 0),
        ((1.0,), BELOW_ONE, 0),
        ((0.0, 1.0), 0.0, 1),  # what cannot happen does not
        ((1.0, 0.0), BELOW_ONE, 0),
        ((0.5, 0.0, 0.5), 0.5, 2),
    ],
)
def test_action_by_hand(kernel, probabilities, uniform, action):
    got, log_prob, entropy = sample(kernel, logits_of(*probabilities), torch.tensor([uniform]))
    assert got.tolist() == [action]
    assert log_prob.item() == pytest.approx(math.log(probabilities[action]), abs=1e-6)
    assert entropy.item() == pytest.approx(-sum(p * math.log(p) for p in probabilities if p > 0.0), abs=1e-6)


@st.composite
def rows(draw):
    num_rows, num_actions = draw(st.sampled_from([0, 1, 2, 7, 127, 128, 129, 300])), draw(st.integers(1, 18))
    random = generator(draw(SEEDS))
    size = draw(st.sampled_from([0.0, 0.01, 1.0, 10.0, 100.0, 1e4]))
    logits = size * torch.randn(num_rows, num_actions, generator=random)
    return logits, torch.rand(num_rows, generator=random)


@KERNELS
@given(rows())
def test_equals_the_float64_reference(kernel, rows):
    logits, uniform = rows
    got, log_prob, entropy = sample(kernel, logits, uniform)
    expected = in_float64([logits, uniform, got, log_prob, entropy])
    sample_categorical.reference(*expected)
    # Rounding may move a uniform over an entry of the cumulative distribution, but not far.
    cdf = torch.softmax(expected[0], dim=-1).cumsum(dim=-1)
    bounds = torch.cat([torch.zeros(len(uniform), 1), cdf], dim=-1)
    assert ((got >= 0) & (got < logits.shape[1])).all()
    picked = got.unsqueeze(-1)
    assert (bounds.gather(-1, picked).squeeze(-1) <= uniform + 1e-6).all()
    assert (bounds.gather(-1, picked + 1).squeeze(-1) >= uniform - 1e-6).all()
    of_action = torch.log_softmax(expected[0], dim=-1).gather(-1, picked).squeeze(-1)
    np.testing.assert_allclose(log_prob.numpy(), of_action.numpy(), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(entropy.numpy(), expected[4].numpy(), rtol=1e-5, atol=1e-6)


@KERNELS
@pytest.mark.parametrize("num_actions", [2, 3, 18])
def test_actions_come_as_often_as_they_should(kernel, num_actions):
    logits = torch.randn(num_actions).expand(2000, num_actions).contiguous()
    uniform = (torch.arange(2000) + 0.5) / 2000  # evenly spread, so that counts are exact
    action, *_ = sample(kernel, logits, uniform)
    frequency = torch.bincount(action, minlength=num_actions) / 2000
    np.testing.assert_allclose(frequency.numpy(), torch.softmax(logits[0], dim=-1).numpy(), atol=1e-3)


@KERNELS
def test_log_prob_and_entropy_are_those_of_torch_distributions(kernel):
    logits = 3.0 * torch.randn(200, 5)
    action, log_prob, entropy = sample(kernel, logits, torch.rand(200))
    distribution = torch.distributions.Categorical(logits=logits.double())
    np.testing.assert_allclose(log_prob.numpy(), distribution.log_prob(action).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entropy.numpy(), distribution.entropy().numpy(), rtol=1e-5, atol=1e-6)


@KERNELS
def test_extreme_logits(kernel):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [-1e4, -1e4], [-1e4, 0.0], [0.0, -50.0]])
    action, log_prob, entropy = sample(kernel, logits, torch.full((6,), 0.25))
    assert action.tolist() == [0, 1, 0, 0, 1, 0]
    half = math.log(2.0)
    assert log_prob.tolist() == pytest.approx([0.0, 0.0, -half, -half, 0.0, 0.0], abs=1e-6)
    assert entropy.tolist() == pytest.approx([0.0, 0.0, half, half, 0.0, 0.0], abs=1e-6)


@KERNELS
def test_masked_actions_are_neither_drawn_nor_counted(kernel):
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]]).repeat(3, 1)
    action, log_prob, entropy = sample(kernel, logits, torch.tensor([0.0, 0.5, BELOW_ONE]))
    assert action.tolist() == [1, 3, 3]
    assert log_prob.tolist() == pytest.approx([-math.log(2.0)] * 3)
    assert entropy.tolist() == pytest.approx([math.log(2.0)] * 3)


@KERNELS
def test_no_rounding_draws_an_illegal_action(kernel):
    """The sum of the legal probabilities is often below 1 - 2^-24, the largest uniform."""
    rng = generator(0)
    logits = 3.0 * torch.randn(2000, 7, generator=rng)
    legal = torch.rand(2000, 7, generator=rng) < 0.5
    legal[:, 3] = True
    logits[~legal] = -torch.inf
    assert (torch.softmax(logits, dim=1).cumsum(dim=1)[:, -1] <= BELOW_ONE).any()
    for uniform in (0.0, 0.5, BELOW_ONE):
        action, _, _ = sample(kernel, logits, torch.full((2000,), uniform))
        assert legal.gather(1, action.unsqueeze(1)).all()


@forms(mask_logits)
@pytest.mark.parametrize(("num_rows", "width", "num_actions"), [(1, 1, 1), (5, 3, 3), (7, 9, 4), (300, 20, 17)])
def test_illegal_actions_have_no_probability(kernel, num_rows, width, num_actions):
    rows = torch.randn(num_rows, width)
    mask = torch.rand(num_rows, num_actions) < 0.6
    rows[:, width - num_actions :] = mask.float()
    logits, before = torch.randn(num_rows, num_actions), torch.randn(num_rows, num_actions)
    logits.copy_(before)
    kernel(rows, logits)
    assert torch.equal(logits, torch.where(mask, before, -torch.inf))


@KERNELS
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_nan_surfaces_in_its_row_only(kernel, at, number):
    logits = torch.zeros(5, 3)
    logits[2, at] = number
    action, log_prob, entropy = sample(kernel, logits, torch.full((5,), 0.5))
    assert ((action >= 0) & (action < 3)).all()
    assert log_prob.isnan().tolist() == entropy.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("wrong", [0, 1, 2, 3, 4])
def test_what_would_be_read_beyond_its_end_is_refused(wrong):
    args = [torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, dtype=torch.int64), torch.zeros(4), torch.zeros(4)]
    args[wrong] = torch.zeros(2, 4).T if wrong == 0 else args[wrong][:3]
    with pytest.raises(ValueError, match=r"the kernel takes a contiguous one of \d+ elements"):
        sample_categorical(*args)


def test_the_reference_takes_float64_too():
    args = in_float64(
        [torch.randn(5, 3), torch.rand(5), torch.zeros(5, dtype=torch.int64), torch.zeros(5), torch.zeros(5)]
    )
    sample_categorical.reference(*args)
    expected = torch.distributions.Categorical(logits=args[0]).entropy()
    np.testing.assert_allclose(args[4].numpy(), expected.numpy(), rtol=1e-14)


GAUSSIAN = forms(sample_gaussian)


def sample_normal(kernel, mean, log_std, noise):
    action, log_prob = torch.full_like(mean, 7.0), torch.full((len(mean),), 7.0, dtype=mean.dtype)
    kernel(mean, log_std, noise, action, log_prob)
    return action, log_prob


@GAUSSIAN
def test_gaussian_by_hand(kernel):
    mean, log_std = torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([0.0, math.log(2.0)])
    action, log_prob = sample_normal(kernel, mean, log_std, torch.tensor([[2.0, -0.5], [0.0, 0.0]]))
    torch.testing.assert_close(action, torch.tensor([[3.0, -2.0], [0.0, 0.0]]))
    at_mean = -math.log(2.0 * math.pi) - math.log(2.0)
    torch.testing.assert_close(log_prob, torch.tensor([at_mean - 2.0 - 0.125, at_mean]))


@GAUSSIAN
@given(st.integers(0, 9), st.integers(1, 9), SEEDS)
def test_gaussian_equals_torch_distributions(kernel, rows, size, seed):
    random = generator(seed)
    mean, noise = torch.randn(2, rows, size, generator=random)
    log_std = torch.randn(size, generator=random).clamp(-3.0, 3.0)
    action, log_prob = sample_normal(kernel, mean, log_std, noise)
    normal = torch.distributions.Normal(mean.double(), log_std.double().exp())
    torch.testing.assert_close(action.double(), mean + log_std.double().exp() * noise, rtol=1e-5, atol=1e-5)
    # The action was rounded, which small deviations magnify.
    torch.testing.assert_close(log_prob.double(), normal.log_prob(action.double()).sum(dim=-1), rtol=1e-4, atol=1e-3)


@GAUSSIAN
def test_a_gaussian_that_is_not_finite_stays_visible(kernel):
    mean, noise = torch.tensor([[torch.nan], [1.0]]), torch.tensor([[0.0], [0.0]])
    action, log_prob = sample_normal(kernel, mean, torch.zeros(1), noise)
    assert action.isnan().tolist() == [[True], [False]] and log_prob.isnan().tolist() == [True, False]


@forms(greedy_categorical)
@given(st.integers(1, 9), st.integers(1, 7), SEEDS)
def test_the_most_likely_action_is_the_first_of_the_largest(kernel, num_rows, num_actions, seed):
    random = generator(seed)
    logits = torch.randint(-2, 3, (num_rows, num_actions), generator=random).float()  # with ties
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.randint(0, 3, logits.shape, generator=random)]
    logits = torch.where(torch.rand(logits.shape, generator=random) < 0.2, odd, logits)
    action = torch.full((num_rows,), -7)
    kernel(logits, action)
    assert action.tolist() == logits.numpy().argmax(axis=1).tolist()
