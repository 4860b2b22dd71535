"""What the tests of both losses share: random cases, the papers' formulas as the oracle, and gradcheck."""

import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from kernels_support import in_float64

POLICY, VALUE, ENTROPY, KL, CLIPPED = range(5)
SURROGATES = pytest.mark.parametrize("surrogate", ["policy_gradient", "clipped"])
SIZES = st.sampled_from([0, 1, 2, 5, 127, 128, 129, 300])


def numbers(draw, valid):
    """The arguments from `surrogate` to `clip_value_coef`."""
    surrogate, clip_coef = draw(st.sampled_from([("policy_gradient", 0.2), ("clipped", 0.1), ("clipped", 0.3)]))
    coefs = [draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.sampled_from([0.0, 0.01]))]
    shift, scale = draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from([1.0, 2.5]))
    clip_value_coef = draw(st.sampled_from([math.inf, 0.2, 0.5]))
    return [surrogate, 1.0 / max(int(valid.sum()), 1), shift, scale, *coefs, clip_coef, clip_value_coef]


def rows_of(random, num_rows, log_prob, value):
    """Old log-probs and values not far from the current, so that they fall on both sides of the clipping range."""
    old = log_prob + 0.3 * torch.randn(num_rows, generator=random)
    old_value = value + 0.4 * torch.randn(num_rows, generator=random)
    advantage, return_ = (torch.randn(num_rows, generator=random) for _ in range(2))
    return [old, old_value, advantage, return_, torch.rand(num_rows, generator=random) < 0.8]


def oracle(
    distribution, value, action, old_log_prob, old_value, advantage, return_, valid, surrogate, inverse_count, *numbers
):
    """The formulas of the papers, on torch.distributions: total and terms."""
    shift, scale, vf_coef, ent_coef, clip_coef, clip_value_coef = numbers
    log_prob, entropy = distribution.log_prob(action), distribution.entropy()
    effective = (advantage - shift) * scale
    ratio = (log_prob - old_log_prob).exp()
    if surrogate == "policy_gradient":
        gain, kl, clipped = log_prob * effective, torch.zeros_like(ratio), torch.zeros_like(ratio)
    else:
        limited = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
        gain = torch.min(ratio * effective, limited * effective)
        kl, clipped = (ratio - 1.0) - ratio.log(), ((ratio - 1.0).abs() > clip_coef).double()
    error = (value - return_).square()
    if clip_value_coef < math.inf:
        near = torch.clamp(value, old_value - clip_value_coef, old_value + clip_value_coef)
        error = torch.max(error, (near - return_).square())
    rows = torch.stack([-gain, error, entropy, kl, clipped])
    terms = torch.where(valid, rows, 0.0).sum(dim=1) * inverse_count
    return terms[POLICY] + vf_coef * terms[VALUE] - ent_coef * terms[ENTROPY], terms.detach()


# torch.distributions take no 0 rows, so those are left to the test of chunks.


def assert_equal_the_oracle(case, num_inputs, distribution_of, got):
    """Hold gradients and terms to autograd through the oracle, in float64."""
    inputs = [tensor.double().requires_grad_() for tensor in case[:num_inputs]]
    rest = in_float64(case[num_inputs : num_inputs + 14])
    total, terms = oracle(distribution_of(*inputs[:-1]), inputs[-1], *rest)
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    *got_gradients, got_terms = got
    assert_close(got_terms, terms, rest[5])
    for gradient, want in zip(got_gradients, gradients, strict=True):
        np.testing.assert_allclose(gradient.double().numpy(), want.numpy(), rtol=2e-4, atol=2e-5)


def assert_close(got_terms, terms, valid):
    np.testing.assert_allclose(got_terms[:4].numpy(), terms[:4].numpy(), rtol=1e-4, atol=1e-5)
    # A ratio at the very end of the range may be rounded to its other side.
    assert abs(got_terms[CLIPPED] - terms[CLIPPED]) <= 1.01 / max(int(valid.sum()), 1)


def far_from_the_clipping_range(case, log_prob, value, first):
    """Whether no ratio and no value is so close to an end of its range that rounding decides on its gradient."""
    old_log_prob, old_value, _, return_, _, surrogate = case[first : first + 6]
    clip_coef, clip_value_coef = case[first + 11 : first + 13]
    distance = ((log_prob - old_log_prob).exp() - 1.0).abs() - clip_coef
    if surrogate == "clipped" and not (distance.abs() > 1e-5).all():
        return False
    limited = old_value + (value - old_value).clamp(-clip_value_coef, clip_value_coef)
    beyond = (value - old_value).abs() > clip_value_coef
    apart = (value - return_).square() - (limited - return_).square()
    at_the_end = ((value - old_value).abs() - clip_value_coef).abs() < 1e-5
    return not bool((at_the_end | (beyond & (apart.abs() < 1e-5))).any())


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


def chunk(case, rows, num_rows):
    """The arguments of one chunk; what is not per row is shared."""
    return [part[rows] if isinstance(part, torch.Tensor) and len(part) == num_rows else part for part in case]


def double_constants(num_rows, surrogate):
    """The constants of a loss after `action`, in float64."""
    old = -1.0 + 0.5 * torch.randn(num_rows, dtype=torch.float64)
    old_value, advantage, return_ = (torch.randn(num_rows, dtype=torch.float64) for _ in range(3))
    valid = torch.arange(num_rows) % 4 != 2
    numbers = surrogate, 1.0 / int(valid.sum()), 0.1, 1.5, 0.5, 0.01, 0.2, 0.5 if surrogate == "clipped" else math.inf
    return [old, old_value, advantage, return_, valid, *numbers]


class Loss(torch.autograd.Function):
    """A kernel's loss, with the gradient that it computes."""

    @staticmethod
    def forward(ctx, kernel, constants, *inputs):
        gradients = [torch.zeros_like(tensor) for tensor in inputs]
        terms = torch.zeros(5, dtype=torch.float64)
        kernel(*inputs, *constants, *gradients, terms)
        ctx.save_for_backward(*gradients)
        *_, vf_coef, ent_coef, _, _ = constants
        return terms[0] + vf_coef * terms[1] - ent_coef * terms[2]

    @staticmethod
    def backward(ctx, d_total):
        return None, None, *(d_total * gradient for gradient in ctx.saved_tensors)
