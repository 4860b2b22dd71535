"""Evaluation counts the episodes it was assigned, all of them, in raw reward."""

import gymnasium
import numpy as np
import pytest
import torch
from core_support import CHAINS, CPU, PROBES, EarlyStart, KnownPolicy, make_chains, make_parts, transitions

from fastac.build import build_envs, build_model
from fastac.config import Config, EnvConfig, ModelConfig
from fastac.contract import EnvFailure
from fastac.envs import adapt, make_vec
from fastac.tools.evaluate import evaluate

SHORT_LONG = PROBES + "ShortLong-v0"


class Idle(KnownPolicy):
    """Always takes action 0."""

    def greedy(self, obs, state, start):
        return torch.zeros(len(obs), dtype=torch.int64), state


class Lengths:
    """Stands in for environments whose every episode's length is known beforehand; reward 1 a step."""

    frame_skip = 1

    def __init__(self, lengths):
        envs = make_vec(EnvConfig(SHORT_LONG, 1, "sync"), np.random.SeedSequence(0))
        self.single_observation_space, self.single_action_space = (
            envs.single_observation_space,
            envs.single_action_space,
        )
        self.lengths, self.num_envs = lengths, len(lengths)

    def reset(self, obs, start):
        self._episode, self._left = np.zeros(self.num_envs, int), np.array([row[0] for row in self.lengths])
        self._done = np.zeros(self.num_envs, bool)
        start.fill(True)

    def step(self, action, row):
        row.valid[...], row.start[...] = ~self._done, self._done
        self._left -= row.valid
        row.reward[...] = row.valid
        row.terminated[...] = row.valid & (self._left == 0)
        row.truncated.fill(False)
        self._done = row.terminated.copy()
        for n in np.flatnonzero(self._done):
            self._episode[n] += 1
            self._left[n] = self.lengths[n][self._episode[n]]


def draw_lengths(num_envs, episodes):
    rng = np.random.default_rng(7)
    return rng.choice([1, 50], size=(num_envs, episodes + 60))


def assigned(lengths, episodes):
    """Return the lengths of each env's share of the episodes."""
    num = len(lengths)
    return [length for n, row in enumerate(lengths) for length in row[: episodes // num + (n < episodes % num)]]


def first_to_finish(lengths, episodes):
    """Return the lengths of the first episodes that end: the biased way."""
    ends = [(end, n, k) for n, row in enumerate(lengths) for k, end in enumerate(np.cumsum(row))]
    return [lengths[n][k] for _, n, k in sorted(ends)[:episodes]]


@pytest.mark.parametrize("num_envs", [1, 3, 8, 64])
def test_the_mean_is_of_the_episodes_assigned_beforehand(num_envs):
    lengths = draw_lengths(num_envs, 100)
    result = evaluate(Idle(), Lengths(lengths), 100, CPU)
    assert sorted(result.lengths.tolist()) == sorted(assigned(lengths, 100))
    assert result.mean_return == np.mean(assigned(lengths, 100)) == result.mean_length
    assert result.std_return == pytest.approx(np.std(assigned(lengths, 100)))


def test_counting_the_first_to_finish_would_be_biased():
    lengths = draw_lengths(64, 100)
    assert np.mean(first_to_finish(lengths, 100)) < 20.0
    assert np.mean(assigned(lengths, 100)) > 23.0


@pytest.mark.parametrize("num_envs", [1, 8, 64])
def test_the_mean_of_short_and_long_episodes_is_unbiased(num_envs):
    envs = make_vec(EnvConfig(SHORT_LONG, num_envs, "sync"), np.random.SeedSequence(5))
    result = evaluate(Idle(), envs, 320, CPU)
    # The mean of 320 fair choices of 1 or 50 deviates by 24.5 / sqrt(320) = 1.4; first-to-finish gives less.
    assert result.mean_return == pytest.approx(25.5, abs=3.5 * 1.4)
    assert set(result.lengths.tolist()) == {1, 50}
    assert result.returns.tolist() == result.lengths.tolist()
    assert len(result.returns) == 320


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled", "own"])
def test_returns_and_lengths_of_the_chains_are_exact_in_every_mode(mode):
    result = evaluate(KnownPolicy(), make_chains(mode), 12, CPU)
    expected = []
    for chain in CHAINS:
        episodes = {}
        for step in transitions(**chain):
            if step.episode == 3:
                break
            total, length = episodes.get(step.episode, (0.0, 0))
            episodes[step.episode] = (total + step.reward, length + 1)
        expected += episodes.values()
    got = sorted(zip(result.returns, result.lengths.tolist(), strict=True))
    for (got_return, got_length), (return_, length) in zip(got, sorted(expected), strict=True):
        assert got_return == pytest.approx(return_, abs=1e-4)
        assert got_length == length


@pytest.mark.parametrize("episodes", [1, 2, 5])
def test_fewer_episodes_than_envs_are_possible(episodes):
    assert len(evaluate(KnownPolicy(), make_chains("next_step"), episodes, CPU).returns) == episodes


def test_memory_is_carried_through_an_episode_and_dropped_after_it():
    class Witness(KnownPolicy):
        """Sees that its memory is the position, whatever the episode."""

        def greedy(self, obs, state, start):
            age = torch.where(start, 0.0, state[:, 0])
            ages.extend(zip((obs[:, 0] % 100).tolist(), age.tolist(), strict=True))
            return super().greedy(obs, state, start)

    ages = []
    evaluate(Witness(), make_chains("next_step"), 20, CPU)
    assert ages and all(position == age for position, age in ages)
    ages.clear()
    evaluate(Witness(), EarlyStart(make_chains("next_step")), 20, CPU)
    assert not all(position == age for position, age in ages)


def test_evaluation_changes_neither_weights_nor_statistics_nor_the_run():
    runs = []
    for watched in (False, True):
        parts = make_parts(num_envs=4, num_steps=8, normalize_obs=True, normalize_reward=True, core="lstm", lstm_size=8)
        for report in parts.trainer.run():
            if watched:
                before = {name: value.clone() for name, value in parts.model.state_dict().items()}
                evaluate(parts.model, make_vec(EnvConfig("CartPole-v1", 3), np.random.SeedSequence(1)), 4, CPU)
                assert all(torch.equal(value, before[name]) for name, value in parts.model.state_dict().items())
            if report.iteration == 4:
                break
        runs.append(parts.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_rewards_are_raw_even_where_learning_scales_them():
    parts = make_parts(env_id=SHORT_LONG, vectorization="sync", num_envs=2, num_steps=8, normalize_reward=True)
    finished = []
    for report in parts.trainer.run():
        finished += report.finished
        if report.iteration == 10:
            break
    assert finished and all(episode.return_ == episode.length for episode in finished)


class Endless(gymnasium.Env):
    """Never ends; `broken` makes its third reward NaN."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, broken=False):
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), float("nan") if self.broken and self.steps == 3 else 1.0, False, False, {}


@pytest.mark.parametrize(
    ("broken", "says"), [(True, "env 0 .* not finite in step 3"), (False, "env 0 has played 50 steps .* time limit")]
)
def test_an_evaluation_that_cannot_be_trusted_stops(monkeypatch, broken, says):
    monkeypatch.setattr("fastac.tools.evaluate._MAX_LENGTH", 50)
    vector = gymnasium.vector.SyncVectorEnv([lambda: Endless(broken)])
    envs = adapt(vector, np.random.SeedSequence(0))
    model = build_model(ModelConfig(hidden_sizes=(4,)), envs)
    with pytest.raises(EnvFailure, match=says):
        evaluate(model, envs, 1, torch.device("cpu"))


def test_evaluating_leaves_a_model_with_batch_statistics_as_it_is():
    config = Config().replace(num_envs=2)
    envs = build_envs(config.env, np.random.SeedSequence(0))

    def encoder(space):
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout())

    model = build_model(config.model, envs, encoder=encoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, envs, 2, torch.device("cpu"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
