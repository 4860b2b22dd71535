"""Losses: their values against plain formulas, their gradients against numbers, and that masked rows do not count."""

import math

import numpy as np
import pytest
import torch
from core_support import weigh
from torch.autograd import gradcheck

from fastac.learning.losses import clipped_surrogate, policy_gradient

LOSSES = pytest.mark.parametrize("loss", [policy_gradient, clipped_surrogate])
COEFS = {"vf_coef": 0.5, "ent_coef": 0.01, "clip_coef": 0.2}


def draw(rows=12, spread=0.5):
    """Return log_prob, entropy, value, old_log_prob, advantage, return_ and weight, in float64."""
    rng = torch.Generator().manual_seed(3)
    log_prob, noise, value, advantage, return_ = (
        torch.randn(rows, generator=rng, dtype=torch.float64) for _ in range(5)
    )
    entropy = torch.rand(rows, generator=rng, dtype=torch.float64)
    valid = torch.arange(rows) % 3 != 1
    return [log_prob, entropy, value, log_prob + spread * noise, advantage, return_, weigh(valid).double()], valid


def test_policy_gradient_is_minus_the_mean_log_prob_times_advantage():
    (log_prob, entropy, value, old, advantage, return_, weight), valid = draw()
    terms = policy_gradient(log_prob, entropy, value, old, advantage, return_, weight, **COEFS)
    policy = -np.mean((log_prob * advantage)[valid].numpy())
    critic = np.mean(np.square((value - return_)[valid].numpy()))
    assert float(terms.policy_loss) == pytest.approx(policy, rel=1e-6)
    assert float(terms.value_loss) == pytest.approx(critic, rel=1e-6)
    assert float(terms.entropy) == pytest.approx(entropy[valid].mean().item(), rel=1e-6)
    assert float(terms.total) == pytest.approx(policy + 0.5 * critic - 0.01 * float(terms.entropy), rel=1e-6)
    assert float(terms.approx_kl) == float(terms.clip_fraction) == 0.0


def test_clipped_surrogate_row_by_row():
    (log_prob, entropy, value, old, advantage, return_, weight), valid = draw()
    terms = clipped_surrogate(log_prob, entropy, value, old, advantage, return_, weight, **COEFS)
    surrogate, kl, beyond = [], [], []
    for row in np.flatnonzero(valid):
        ratio = math.exp(log_prob[row] - old[row])
        bound = min(max(ratio, 0.8), 1.2)
        surrogate.append(min(ratio * advantage[row].item(), bound * advantage[row].item()))
        kl.append(ratio - 1.0 - math.log(ratio))
        beyond.append(abs(ratio - 1.0) > 0.2)
    assert 0 < sum(beyond) < len(beyond)
    assert float(terms.policy_loss) == pytest.approx(-np.mean(surrogate), rel=1e-6)
    assert float(terms.approx_kl) == pytest.approx(np.mean(kl), rel=1e-6)
    assert float(terms.clip_fraction) == pytest.approx(np.mean(beyond), rel=1e-6)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "gradient"),
    [
        (0.5, 1.0, 0.0),  # beyond the range, the way the advantage points: no more to gain
        (-0.5, 1.0, -math.exp(-0.5)),  # beyond, the wrong way: pulled back in full
        (-0.5, -1.0, 0.0),
        (0.5, -1.0, math.exp(0.5)),
        (0.1, 1.0, -math.exp(0.1)),  # within
        (0.0, 1.0, -1.0),  # where every first epoch begins
        (0.0, -1.0, 1.0),
    ],
)
def test_clipping_stops_the_gradient_only_where_nothing_is_left_to_gain(log_ratio, advantage, gradient):
    log_prob = torch.tensor([log_ratio], requires_grad=True)
    zero, one = torch.zeros(1), torch.ones(1)
    terms = clipped_surrogate(log_prob, zero, zero, zero, advantage * one, zero, one, 0.0, 0.0, 0.2)
    terms.total.backward()
    assert log_prob.grad.item() == pytest.approx(gradient)


@LOSSES
def test_gradients_agree_with_finite_differences(loss):
    (log_prob, entropy, value, *constants), _ = draw()
    inputs = [part.clone().requires_grad_() for part in (log_prob, entropy, value)]
    assert gradcheck(lambda *three: loss(*three, *constants, **COEFS).total, inputs)


@LOSSES
def test_gradients_of_every_row_by_formula(loss):
    (log_prob, entropy, value, old, advantage, return_, weight), _ = draw(spread=0.05)  # nothing is clipped
    for part in (log_prob, entropy, value):
        part.requires_grad_()
    loss(log_prob, entropy, value, old, advantage, return_, weight, **COEFS).total.backward()
    ratio = (log_prob - old).detach().exp() if loss is clipped_surrogate else 1.0
    assert torch.allclose(log_prob.grad, -ratio * advantage * weight, rtol=1e-12)
    assert torch.allclose(value.grad, 0.5 * 2.0 * (value - return_).detach() * weight, rtol=1e-12)
    assert torch.allclose(entropy.grad, -0.01 * weight, rtol=1e-12)


@LOSSES
def test_rows_that_are_not_valid_change_nothing(loss):
    results = []
    for garbage in (0.0, -3.0):
        parts, valid = draw()
        for part in parts[:6]:
            part[~valid] += garbage
        for part in parts[:3]:
            part.requires_grad_()
        terms = loss(*parts, **COEFS)
        terms.total.backward()
        assert all((part.grad[~valid] == 0.0).all() for part in parts[:3])
        results.append([terms.total, terms.policy_loss, terms.value_loss, terms.entropy, terms.approx_kl])
        results[-1] += [terms.clip_fraction, *(part.grad[valid] for part in parts[:3])]
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


def test_no_valid_row_gives_a_loss_of_0_and_no_gradient():
    log_prob = torch.zeros(3, requires_grad=True)
    ones, none = torch.ones(3), weigh(torch.zeros(3, dtype=torch.bool))
    for loss in (policy_gradient, clipped_surrogate):
        terms = loss(log_prob, ones, ones, ones, ones, ones * 2.0, none, **COEFS)
        assert terms.total.item() == 0.0
        terms.total.backward()
    assert (log_prob.grad == 0.0).all()
