"""Advantages: by hand, by identities, by fuzzing against float64, and by the lecture's code. Moments likewise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator

from fastac.kernels import batch_moments, compute_gae, compute_moments, gae, weigh_rows

KERNELS, MOMENTS = forms(gae), forms(batch_moments)


def run(kernel, reward, value, terminated, truncated, gamma, lam):
    valid = torch.ones_like(terminated)
    return run_valid(kernel, reward, value, terminated, truncated, valid, gamma, lam)[:2]


def run_valid(kernel, reward, value, terminated, truncated, valid, gamma, lam):
    advantage, return_ = torch.full(reward.shape, torch.nan), torch.full(reward.shape, torch.nan)
    moments = torch.full((5,), torch.nan, dtype=torch.float64)
    kernel(reward, value, terminated, truncated, valid, gamma, lam, advantage, return_, moments)
    return advantage, return_, moments


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(-1)


def flags(*numbers):
    return torch.tensor(numbers, dtype=torch.bool).unsqueeze(-1)


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
    got, return_ = run(kernel, column(1, 2, 4), value, flags(*terminated), flags(*truncated), *HALF)
    assert got.flatten().tolist() == list(advantage)
    assert torch.equal(return_, got + value[:-1])


@KERNELS
def test_envs_do_not_mix(kernel):
    terminated, truncated = torch.zeros(3, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
    terminated[1, 0] = True
    value = column(8, 16, 32, 64).expand(4, 2).contiguous()
    got, _ = run(kernel, column(1, 2, 4).expand(3, 2).contiguous(), value, terminated, truncated, *HALF)
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


@KERNELS
@given(rollouts())
def test_equals_the_float64_reference(kernel, rollout):
    reward, value, terminated, truncated, gamma, lam = rollout
    expected = compute_gae(reward.double(), value.double(), terminated, truncated, gamma, lam)
    for got, want in zip(run(kernel, *rollout), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-4, atol=1e-3)


@given(rollouts())
def test_lambda_0_is_the_td_error(rollout):
    reward, value, terminated, truncated, gamma, _ = rollout
    advantage, _ = run(gae, reward, value, terminated, truncated, gamma, 0.0)
    td = reward + gamma * value[1:] * ~terminated - value[:-1]
    np.testing.assert_allclose(advantage.numpy(), td.numpy(), rtol=1e-5, atol=1e-4)


@given(rollouts())
def test_lambda_1_is_the_discounted_return_minus_the_value(rollout):
    reward, value, terminated, truncated, gamma, _ = rollout
    advantage, return_ = run(gae, reward, value, terminated, truncated, gamma, 1.0)
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
    advantage, _ = run(gae, reward, value, terminated, torch.zeros_like(truncated), gamma, lam)
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
    advantage, return_ = run(kernel, torch.ones(8, 2), value, never, truncated, gamma, lam)
    assert torch.equal(advantage, torch.zeros(8, 2))
    assert torch.equal(return_, value[:-1])
    # Taken for terminations, the same limits would cost what lies beyond them.
    wrong, _ = run(kernel, torch.ones(8, 2), value, truncated, never, gamma, lam)
    assert wrong.min() == -gamma / (1.0 - gamma)


def test_writes_into_views_of_a_longer_rollout():
    reward, value = torch.randn(6, 3), torch.randn(7, 3)
    terminated, truncated = torch.rand(6, 3) < 0.3, torch.zeros(6, 3, dtype=torch.bool)
    advantage, return_ = torch.full((6, 3), 7.0), torch.full((6, 3), 7.0)
    moments, valid = torch.zeros(5, dtype=torch.float64), torch.ones(4, 3, dtype=torch.bool)
    rows = reward[:4], value[:5], terminated[:4], truncated[:4]
    gae(*rows, valid, 0.9, 0.8, advantage[:4], return_[:4], moments)
    expected, _ = compute_gae(*rows, 0.9, 0.8)
    np.testing.assert_allclose(advantage[:4].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert (advantage[4:] == 7.0).all() and (return_[4:] == 7.0).all()


# Wide rows and narrow ones take different loops, and strips of rows end where they may.
SHAPES = [(1, 1), (3, 31), (3, 32), (3, 33), (1030, 1), (300, 7), (3, 1030), (2, 2500)]


@KERNELS
@pytest.mark.parametrize(("num_steps", "num_envs"), SHAPES)
def test_every_path_equals_the_float64_reference(kernel, num_steps, num_envs):
    shape = num_steps, num_envs
    reward, value = torch.randn(shape), torch.randn(num_steps + 1, num_envs)
    terminated, truncated, valid = torch.rand(shape) < 0.1, torch.rand(shape) < 0.1, torch.rand(shape) < 0.7
    valid[-1, -1] = True
    got = run_valid(kernel, reward, value, terminated, truncated, valid, 0.99, 0.95)
    expected = compute_gae(reward.double(), value.double(), terminated, truncated, 0.99, 0.95)
    for estimate, want in zip(got, expected, strict=False):
        np.testing.assert_allclose(estimate.numpy(), want.numpy(), rtol=1e-4, atol=1e-4)
    assert got[2].tolist() == pytest.approx(moments_of(expected, valid), rel=1e-5, abs=1e-5)


def moments_of(estimates, valid):
    (count, *of_advantage), (_, *of_return) = (compute_moments(row, valid) for row in estimates)
    return [count, *of_advantage, *of_return]


@KERNELS
def test_moments_by_hand(kernel):
    reward, value = column(1, 3, 100, 8), column(0, 0, 10, 10, 0)
    flags_of = flags(1, 1, 1, 1)
    # Every row terminates, so advantage = reward - value and return = reward: 1, 3, (90), -2 and 1, 3, (100), 8.
    *_, moments = run_valid(kernel, reward, value, flags_of, ~flags_of, flags(1, 1, 0, 1), 0.9, 0.9)
    mean_a, mean_r = (1 + 3 - 2) / 3, (1 + 3 + 8) / 3
    m2_a = sum((x - mean_a) ** 2 for x in (1, 3, -2))
    m2_r = sum((x - mean_r) ** 2 for x in (1, 3, 8))
    assert moments.tolist() == pytest.approx([3, mean_a, m2_a, mean_r, m2_r], rel=1e-6)


@KERNELS
@given(rollouts(), SEEDS)
@settings(max_examples=30)  # each goes through the interpreter
def test_moments_leave_out_what_is_not_valid(kernel, rollout, seed):
    reward, value, terminated, _, *_ = rollout
    valid = torch.rand(reward.shape, generator=generator(seed)) < 0.6
    # One step long each, so that nothing flows from the garbage into valid rows.
    reward = torch.where(valid, reward, torch.nan)
    terminated = torch.ones_like(terminated)
    advantage, return_, moments = run_valid(kernel, reward, value, terminated, ~terminated, valid, 0.9, 0.9)
    want = moments_of((advantage, return_), valid)
    assert moments.tolist() == pytest.approx(want, rel=1e-4, abs=1e-4)


@KERNELS
@pytest.mark.parametrize("number", [0.1, -123.456, 1e-30, 3e7])
@pytest.mark.parametrize("shape", [(1, 1), (40, 3), (5, 700)])
def test_equal_numbers_do_not_vary_at_all(kernel, number, shape):
    ended = torch.ones(shape, dtype=torch.bool)
    reward, value = torch.full(shape, number), torch.full((shape[0] + 1, shape[1]), 0.7)
    reward[0, 0], valid = 5.0, ended.clone()
    valid[0, 0] = False
    advantage, return_, moments = run_valid(kernel, reward, value, ended, ~ended, valid, 0.9, 0.9)
    means = [row[valid][:1].double().sum().item() for row in (advantage, return_)]
    assert moments.tolist() == [valid.sum(), means[0], 0.0, means[1], 0.0]


@KERNELS
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing(kernel, shape):
    flags_of = torch.ones(shape, dtype=torch.bool)
    reward, value = torch.zeros(shape), torch.zeros(shape[0] + 1, shape[1])
    *_, moments = run_valid(kernel, reward, value, flags_of, flags_of, flags_of, 0.9, 0.9)
    assert moments.tolist() == [0.0] * 5


@KERNELS
def test_moments_of_numbers_far_from_0(kernel):
    ended = torch.ones(64, 40, dtype=torch.bool)
    reward, value = torch.randn(64, 40) + 1e4, torch.zeros(65, 40)
    reward[63, 0] = 0.0  # the first number that a kernel sees may be far from all others
    advantage, return_, moments = run_valid(kernel, reward, value, ended, ~ended, ended, 0.9, 0.9)
    assert moments.tolist() == pytest.approx(moments_of((advantage, return_), ended), rel=1e-4)


@KERNELS
def test_nan_surfaces_in_the_moments(kernel):
    ended = torch.ones(3, 2, dtype=torch.bool)
    reward = torch.ones(3, 2)
    reward[1, 1] = torch.nan
    *_, moments = run_valid(kernel, reward, torch.zeros(4, 2), ended, ~ended, ended, 0.9, 0.9)
    assert moments[0] == 6 and moments[1:].isnan().all()


@KERNELS
def test_what_ended_is_not_reached_by_what_follows(kernel):
    reward, value = column(1, 2, torch.nan), column(0, torch.nan, 4, torch.nan)
    got, _ = run(kernel, reward, value, flags(1, 0, 0), flags(0, 1, 0), 0.5, 0.5)
    assert got[0].item() == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"value": torch.zeros(3, 2)},  # T rows, not T+1
        {"reward": torch.zeros(2, 3).T},
        {"reward": torch.zeros(3, 2, dtype=torch.float64)},
        {"valid": torch.zeros(3, 2)},
        {"moments": torch.zeros(3, dtype=torch.float64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_would_be_read_beyond_its_end_is_refused(change):
    bools = {name: torch.zeros(3, 2, dtype=torch.bool) for name in ("terminated", "truncated", "valid")}
    floats = {name: torch.zeros(3, 2) for name in ("reward", "advantage", "return_")}
    args = {"value": torch.zeros(4, 2), "moments": torch.zeros(5, dtype=torch.float64), **bools, **floats}
    gae(args.pop("reward"), gamma=0.9, gae_lambda=0.9, **args)
    args |= change
    with pytest.raises(ValueError, match=r"the kernel takes a contiguous one of \d+ elements"):
        gae(args.pop("reward", torch.zeros(3, 2)), gamma=0.9, gae_lambda=0.9, **args)


# ---- moments of a batch ---------------------------------------------------------------------------


def moments_by(kernel, row, valid):
    moments = torch.full((3,), torch.nan, dtype=torch.float64)
    kernel(row, valid, moments)
    return moments.tolist()


@MOMENTS
def test_moments_of_a_batch_by_hand(kernel):
    row, valid = torch.tensor([1.0, 2.0, torch.nan, 6.0]), torch.tensor([True, True, False, True])
    assert moments_by(kernel, row, valid) == pytest.approx([3.0, 3.0, 4.0 + 1.0 + 9.0])
    assert moments_by(kernel, row[:0], valid[:0]) == [0.0, 0.0, 0.0]
    assert moments_by(kernel, row[2:3], valid[2:3]) == [0.0, 0.0, 0.0]
    assert moments_by(kernel, row[3:], valid[3:]) == [1.0, 6.0, 0.0]


@MOMENTS
@given(st.sampled_from([1, 2, 40, 1023, 1024, 1025, 5000]), st.sampled_from([0.0, 1.0, 1e4, -3e5]), SEEDS)
def test_moments_of_a_batch_equal_float64(kernel, size, mean, seed):
    random = generator(seed)
    row = torch.randn(size, generator=random) + mean
    valid = torch.rand(size, generator=random) < 0.8
    garbage = torch.where(valid, row, torch.inf)
    want = compute_moments(row, valid)
    assert moments_by(kernel, garbage, valid) == pytest.approx(want, rel=1e-5, abs=1e-5)


@MOMENTS
@pytest.mark.parametrize("number", [0.1, -123.456, 3e7])
@pytest.mark.parametrize("size", [1, 3, 700, 3000])
def test_equal_numbers_of_a_batch_do_not_vary_at_all(kernel, number, size):
    row, valid = torch.full((size,), number), torch.arange(size) % 3 < 2
    assert moments_by(kernel, row, valid) == [valid.sum(), float(row[0]), 0.0]
    assert moments_by(kernel, row, ~valid) == ([(~valid).sum(), float(row[0]), 0.0] if size > 2 else [0.0, 0.0, 0.0])


@MOMENTS
def test_numbers_may_jump(kernel):
    # Each strip's deviations are taken from the mean before it, which is of no use here.
    row = torch.randn(6000) + 1e4 * (torch.arange(6000) // 1500 % 2)
    valid = torch.ones(6000, dtype=torch.bool)
    assert moments_by(kernel, row, valid) == pytest.approx(compute_moments(row, valid), rel=1e-5)


# --- the weights of a batch's rows ---------------------------------------------------------------


@forms(weigh_rows)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.booleans(), SEEDS)
def test_weights_are_those_of_all_parts_together(kernel, sizes, normalize, seed):
    parts = [3.0 + 2.0 * torch.randn(size, generator=generator(seed)) for size in sizes]
    of_advantages = [compute_moments(part, torch.ones(len(part), dtype=torch.bool)) for part in parts]
    moments = torch.tensor([[*three, 7.0, 7.0] for three in of_advantages], dtype=torch.float64)
    weights, whole = torch.full((3,), 7.0, dtype=torch.float64), torch.cat(parts).double()
    kernel(moments, normalize, weights)
    expected = [1.0 / max(len(whole), 1), 0.0, 1.0]
    if normalize:
        mean, std = (whole.mean().item(), whole.std(correction=0).item()) if len(whole) else (0.0, 0.0)
        expected[1:] = mean, 1.0 / (std + 1e-8)
    assert weights.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_both_forms_weigh_alike():
    moments = torch.tensor([[5.0, 0.1, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [7.0, -0.4, 1.7, 0.0, 0.0]]).double()
    ours, theirs = torch.empty(3, dtype=torch.float64), torch.empty(3, dtype=torch.float64)
    weigh_rows(moments, True, ours)
    weigh_rows.reference(moments, True, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-15, atol=0.0)
