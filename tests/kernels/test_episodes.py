"""Finding finished episodes: by hand, against a loop per env, and across calls."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator

from fastac.kernels import find_episodes

KERNELS = forms(find_episodes)


def flags(rows):
    return torch.tensor(rows, dtype=torch.bool)


def zeros(num_envs):
    return torch.zeros(num_envs, dtype=torch.float64), torch.zeros(num_envs, dtype=torch.int64)


def found_by(kernel, reward, valid, terminated, truncated, running, life_lost=None):
    return_, length = (torch.full((reward.numel(),), -1, dtype=dtype) for dtype in (torch.float64, torch.int64))
    life_lost = torch.zeros_like(valid) if life_lost is None else life_lost
    found = kernel(reward, valid, terminated, truncated, life_lost, *running, return_, length)
    assert (length[found:] == -1).all()
    return list(zip(return_[:found].tolist(), length[:found].tolist(), strict=True))


@KERNELS
def test_by_hand(kernel):
    reward = torch.tensor([[1.0, 10.0], [2.0, 20.0], [torch.nan, 40.0], [8.0, 80.0]])
    valid = flags([[1, 1], [1, 1], [0, 1], [1, 1]])
    terminated = flags([[0, 0], [1, 0], [0, 0], [0, 1]])
    truncated = flags([[0, 1], [0, 0], [0, 0], [0, 1]])
    running = torch.tensor([100.0, 200.0], dtype=torch.float64), torch.tensor([5, 6])
    # In order of time, then env; both flags are one end.
    assert found_by(kernel, reward, valid, terminated, truncated, running) == [(210.0, 7), (103.0, 7), (140.0, 3)]
    assert [part.tolist() for part in running] == [[8.0, 0.0], [1, 0]]


@KERNELS
def test_an_episode_goes_on_over_lost_lives(kernel):
    reward, valid = torch.tensor([[1.0], [2.0], [4.0], [8.0]]), flags([[1], [1], [1], [1]])
    terminated, truncated, life_lost = (
        flags([[1], [1], [0], [1]]),
        flags([[0], [0], [1], [0]]),
        flags([[1], [0], [0], [1]]),
    )
    running = zeros(1)
    assert found_by(kernel, reward, valid, terminated, truncated, running, life_lost) == [(3.0, 2), (4.0, 1)]
    assert [part.tolist() for part in running] == [[8.0], [1]]


@KERNELS
def test_all_at_once(kernel):
    ends = flags([[1, 1, 1]])
    assert found_by(kernel, torch.tensor([[1.0, 2.0, 3.0]]), ends, ~ends, ends, zeros(3)) == [(1, 1), (2, 1), (3, 1)]
    assert found_by(kernel, torch.ones(1, 3), ends, ~ends, ~ends, zeros(3)) == []


@given(st.integers(1, 30), st.sampled_from([1, 2, 16, 31, 70]), st.sampled_from([0.0, 0.05, 0.5, 1.0]), SEEDS)
def test_equals_a_loop_over_every_env(num_steps, num_envs, ends, seed):
    random = generator(seed)
    shape = num_steps, num_envs
    reward = torch.randn(shape, generator=random)
    valid = torch.rand(shape, generator=random) < 0.8
    terminated, truncated = (torch.rand(shape, generator=random) < ends for _ in range(2))
    expected = []
    for n in range(num_envs):
        total, length = 0.0, 0
        for t in range(num_steps):
            total += float(reward[t, n]) if valid[t, n] else 0.0
            length += int(valid[t, n])
            if terminated[t, n] or truncated[t, n]:
                expected.append((t, n, total, length))
                total, length = 0.0, 0
    expected = [episode[2:] for episode in sorted(expected)]
    rows = reward, valid, terminated, truncated
    for kernel in (find_episodes.reference, find_episodes):
        assert found_by(kernel, *rows, zeros(num_envs)) == expected
        # The same in two calls, the second of which carries on what the first began.
        half, running = num_steps // 2, zeros(num_envs)
        parts = [found_by(kernel, *(row[part] for row in rows), running) for part in (slice(half), slice(half, None))]
        assert parts[0] + parts[1] == expected


def test_what_would_be_written_beyond_its_end_is_refused():
    rows = torch.zeros(2, 3), *(torch.zeros(2, 3, dtype=torch.bool) for _ in range(4))
    with pytest.raises(ValueError, match="the kernel takes a contiguous one of 6 elements"):
        find_episodes(*rows, *zeros(3), *zeros(5))
