"""Finding finished episodes: by hand, against a loop per env, and across calls."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator

from fastac.kernels import find_episodes, note_episodes
from fastac.kernels.episodes import BROKEN, CUT, FOUND, OVER, PLAYING, STEPS

KERNELS = forms(find_episodes)


def flags(rows):
    return torch.tensor(rows, dtype=torch.bool)


def zeros(num_envs):
    return torch.zeros(num_envs, dtype=torch.float64), torch.zeros(num_envs, dtype=torch.int64)


def found_by(kernel, reward, valid, terminated, truncated, running, life_lost=None):
    return_, length = (torch.full((reward.numel(),), -1, dtype=dtype) for dtype in (torch.float64, torch.int64))
    life_lost = torch.zeros_like(valid) if life_lost is None else life_lost
    num = torch.full((1,), -1)
    kernel(reward, valid, terminated, truncated, life_lost, *running, return_, length, num)
    found = int(num)
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
        find_episodes(*rows, *zeros(3), *zeros(5), torch.zeros(1, dtype=torch.int64))


NOTING = forms(note_episodes)


class Noted:
    """What `note_episodes` updates, and how it is called."""

    def __init__(self, kernel, quota, max_steps, obs_size=3):
        self._kernel, self._max_steps, num = kernel, max_steps, len(quota)
        self.quota, self.obs = torch.tensor(quota), torch.zeros(num, obs_size)
        self.running = zeros(num)
        self.playing, self.noted = self.quota > 0, torch.ones(num, dtype=torch.bool)
        self.episodes = torch.zeros(sum(quota), dtype=torch.float64), torch.zeros(sum(quota), dtype=torch.int64)
        self.counts = torch.zeros(6, dtype=torch.int64)

    def take(self, reward, valid, terminated, truncated, life_lost):
        row = self.obs, reward, valid, terminated, truncated, life_lost
        written = *self.running, self.quota, self.playing, self.noted, *self.episodes, self.counts
        self._kernel(*row, self._max_steps, *written)

    def state(self):
        parts = *self.running, self.quota, self.playing, self.noted, *self.episodes, self.counts
        return [part.tolist() for part in parts]


def draw_rows(num, random, steps):
    for _ in range(steps):
        valid, terminated, truncated, lost = (torch.rand(4, num, generator=random) < p for p in (0.8, 0.3, 0.15, 0.3))
        valid, terminated, truncated, lost = valid[0], terminated[1], truncated[2], lost[3]
        reward = torch.randn(num, generator=random) * valid
        yield reward, valid, terminated & valid, truncated & valid, lost & terminated & valid


@NOTING
@given(st.integers(1, 9), st.integers(1, 6), SEEDS)
def test_an_evaluation_notes_what_a_loop_per_env_does(kernel, num, max_steps, seed):
    random = generator(seed)
    quota = torch.randint(0, 4, (num,), generator=random).tolist()
    quota[0] += 1
    games = Noted(kernel, quota, max_steps)
    left, total, length = list(quota), [0.0] * num, [0] * num
    playing, want, cut, steps = [q > 0 for q in quota], [], 0, 0
    for reward, valid, terminated, truncated, lost in draw_rows(num, random, 40):
        if not any(playing):
            break
        games.take(reward, valid, terminated, truncated, lost)
        steps, noted = steps + 1, [False] * num
        for n in range(num):
            total[n] += float(reward[n])
            length[n] += int(valid[n])
            if (terminated[n] and not lost[n]) or truncated[n]:
                if playing[n]:
                    want.append((total[n], length[n]))
                    left[n] -= 1
                    playing[n], noted[n] = left[n] > 0, True
                total[n], length[n] = 0.0, 0
        for n in range(num):
            if playing[n] and length[n] >= max_steps:
                want.append((total[n], length[n]))
                left[n] -= 1
                playing[n], noted[n], cut = False, True, cut + 1
        counts = games.counts
        assert games.noted.tolist() == noted and games.quota.tolist() == left and games.playing.tolist() == playing
        assert [counts[k] for k in (OVER, BROKEN, STEPS, FOUND, CUT, PLAYING)] == [
            not any(playing), 0, steps, len(want), cut, sum(playing),
        ]  # fmt: skip
    found = int(games.counts[FOUND])
    assert list(zip(*(part[:found].tolist() for part in games.episodes), strict=True)) == want


@NOTING
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("where", "obs_size"), [("obs", 3), ("reward", 3), ("reward", 0)])
def test_the_first_env_whose_numbers_are_not_finite_is_named_and_nothing_is_noted(kernel, where, number, obs_size):
    games = Noted(kernel, [1] * 7, 100, obs_size)
    reward, ends = torch.ones(7), torch.ones(7, dtype=torch.bool)
    before = games.state()
    broken = games.obs[:, 2] if where == "obs" else reward
    broken[4] = broken[5] = number
    games.take(reward, ends, ends, ~ends, ~ends)
    assert (games.counts[OVER], games.counts[BROKEN]) == (1, 5)
    games.counts.zero_()
    assert games.state() == before
