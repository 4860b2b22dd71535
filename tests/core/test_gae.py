"""Advantages: by hand, by identities, by fuzzing the fast kernel against the reference, and by the lecture's code."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastac.kernels import gae, gae_reference


def fast(reward, value, terminated, truncated, gamma, lam):
    advantage, return_ = torch.full(reward.shape, torch.nan), torch.full(reward.shape, torch.nan)
    gae(reward, value, terminated, truncated, gamma, lam, advantage, return_)
    return advantage, return_


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(-1)


def flags(*numbers):
    return torch.tensor(numbers, dtype=torch.bool).unsqueeze(-1)


KERNELS = pytest.mark.parametrize("kernel", [fast, gae_reference], ids=["numba", "reference"])
# gamma = lambda = 1/2 keeps every number below exact in float32.
HALF = (0.5, 0.5)


@KERNELS
@pytest.mark.parametrize(
    ("terminated", "truncated", "advantage"),
    [
        # reward 1 2 4, value 8 16 32 64; delta without an end: 1, 2, 4
        ((0, 0, 0), (0, 0, 0), (1 + 0.25 * (2 + 0.25 * 4), 2 + 0.25 * 4, 4)),
        ((1, 0, 0), (0, 0, 0), (-7, 3, 4)),  # t = 0 terminated: delta = 1 - 8
        ((0, 0, 0), (1, 0, 0), (1, 3, 4)),  # t = 0 truncated: bootstraps, carries nothing
        ((1, 0, 0), (1, 0, 0), (-7, 3, 4)),  # both: termination wins
        ((0, 0, 1), (0, 0, 0), (1 + 0.25 * (2 + 0.25 * -28), 2 + 0.25 * -28, -28)),  # t = T-1 terminated
        ((0, 0, 0), (0, 0, 1), (1 + 0.25 * (2 + 0.25 * 4), 3, 4)),  # t = T-1 truncated: like no end
        ((1, 1, 0), (0, 0, 0), (-7, -14, 4)),  # two in a row
        ((0, 1, 0), (1, 0, 0), (1, -14, 4)),
        ((1, 0, 1), (0, 1, 0), (-7, 2, -28)),  # episodes of length 1 throughout
    ],
)
def test_hand_computed(kernel, terminated, truncated, advantage):
    value = column(8, 16, 32, 64)
    got, return_ = kernel(column(1, 2, 4), value, flags(*terminated), flags(*truncated), *HALF)
    assert got.flatten().tolist() == list(advantage)
    assert torch.equal(return_, got + value[:-1])


@KERNELS
def test_envs_do_not_mix(kernel):
    terminated, truncated = torch.zeros(3, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
    terminated[1, 0] = True
    value = column(8, 16, 32, 64).expand(4, 2).contiguous()
    got, _ = kernel(column(1, 2, 4).expand(3, 2).contiguous(), value, terminated, truncated, *HALF)
    assert got[:, 0].tolist() == [-2.5, -14.0, 4.0]
    assert got[:, 1].tolist() == [1.75, 3.0, 4.0]


@st.composite
def rollouts(draw):
    num_steps, num_envs = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ends = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    reward = torch.from_numpy(rng.normal(0.0, 3.0, (num_steps, num_envs)).astype(np.float32))
    value = torch.from_numpy(rng.normal(0.0, 10.0, (num_steps + 1, num_envs)).astype(np.float32))
    terminated, truncated = (torch.from_numpy(rng.random((num_steps, num_envs)) < ends) for _ in range(2))
    unit = st.one_of(st.sampled_from([0.0, 1.0, 0.99]), st.floats(0.0, 1.0))
    return reward, value, terminated, truncated, draw(unit), draw(unit)


@given(rollouts())
def test_fast_kernel_equals_float64_reference(rollout):
    reward, value, terminated, truncated, gamma, lam = rollout
    expected = gae_reference(reward.double(), value.double(), terminated, truncated, gamma, lam)
    for got, want in zip(fast(*rollout), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-4, atol=1e-3)


@given(rollouts())
def test_lambda_0_is_the_td_error(rollout):
    reward, value, terminated, truncated, gamma, _ = rollout
    advantage, _ = fast(reward, value, terminated, truncated, gamma, 0.0)
    td = reward + gamma * value[1:] * ~terminated - value[:-1]
    np.testing.assert_allclose(advantage.numpy(), td.numpy(), rtol=1e-5, atol=1e-4)


@given(rollouts())
def test_lambda_1_is_the_discounted_return_minus_the_value(rollout):
    reward, value, terminated, truncated, gamma, _ = rollout
    advantage, return_ = fast(reward, value, terminated, truncated, gamma, 1.0)
    num_steps, num_envs = reward.shape
    for n in range(num_envs):
        for t in range(num_steps):
            ends = [k for k in range(t, num_steps) if terminated[k, n] or truncated[k, n]]
            last = ends[0] if ends else num_steps - 1
            total = sum(gamma ** (k - t) * float(reward[k, n]) for k in range(t, last + 1))
            if not terminated[last, n]:
                total += gamma ** (last + 1 - t) * float(value[last + 1, n])
            assert float(return_[t, n]) == pytest.approx(total, rel=1e-4, abs=1e-3)
            assert float(advantage[t, n]) == pytest.approx(total - float(value[t, n]), rel=1e-4, abs=1e-3)


def lecture_compute_gae(rewards, values, next_value, dones, gamma, lam):
    """As in the lecture: one env, `dones` are terminations."""
    advantages, following = [], 0.0
    values = [*values, next_value]
    for t in reversed(range(len(rewards))):
        if dones[t]:
            following = rewards[t] - values[t]
        else:
            delta = rewards[t] + gamma * values[t + 1] - values[t]
            following = delta + gamma * lam * following
        advantages.insert(0, following)
    return advantages


@given(rollouts())
def test_equals_the_lecture_where_nothing_is_truncated(rollout):
    reward, value, terminated, truncated, gamma, lam = rollout
    advantage, _ = fast(reward, value, terminated, torch.zeros_like(truncated), gamma, lam)
    for n in range(reward.shape[1]):
        rewards, values = reward[:, n].tolist(), value[:, n].tolist()
        expected = lecture_compute_gae(rewards, values[:-1], values[-1], terminated[:, n].tolist(), gamma, lam)
        np.testing.assert_allclose(advantage[:, n].numpy(), expected, rtol=1e-4, atol=1e-3)


@KERNELS
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_time_limits_do_not_change_the_value_of_an_endless_task(kernel, lam):
    # Reward 1 for ever is worth 1 / (1 - gamma); a critic that knows it finds nothing to correct.
    gamma = 0.75
    value = torch.full((9, 2), 1.0 / (1.0 - gamma))
    truncated = torch.arange(8).unsqueeze(-1).expand(8, 2) % 3 == 2
    never = torch.zeros_like(truncated)
    advantage, return_ = kernel(torch.ones(8, 2), value, never, truncated, gamma, lam)
    assert torch.equal(advantage, torch.zeros(8, 2))
    assert torch.equal(return_, value[:-1])
    # Taken for terminations, the same limits would cost what lies beyond them.
    wrong, _ = kernel(torch.ones(8, 2), value, truncated, never, gamma, lam)
    assert wrong.min() == -gamma / (1.0 - gamma)


def test_fast_kernel_writes_into_views_of_a_longer_rollout():
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.randn(6, 3, generator=generator), torch.randn(7, 3, generator=generator)
    terminated, truncated = torch.rand(6, 3, generator=generator) < 0.3, torch.zeros(6, 3, dtype=torch.bool)
    advantage, return_ = torch.full((6, 3), 7.0), torch.full((6, 3), 7.0)
    gae(reward[:4], value[:5], terminated[:4], truncated[:4], 0.9, 0.8, advantage[:4], return_[:4])
    expected, _ = gae_reference(reward[:4], value[:5], terminated[:4], truncated[:4], 0.9, 0.8)
    np.testing.assert_allclose(advantage[:4].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert (advantage[4:] == 7.0).all() and (return_[4:] == 7.0).all()
