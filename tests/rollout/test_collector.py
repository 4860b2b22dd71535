"""What a rollout holds after collecting: unclipped actions, the memory before row 0, and exact LSTM values."""

from itertools import islice

import gymnasium as gym
import numpy as np
import pytest
import torch
from core_support import (
    CHAINS,
    CPU,
    LAMBDA,
    Truth,
    allocate,
    estimate,
    evaluate_rows,
    known_value,
    make_chains,
    make_collector,
    run_iterations,
)
from core_support import make_training as training_of
from gymnasium.spaces import Box, Discrete

from fastac.contract import EnvFailure, Phases
from fastac.envs.sync import SyncEnvs
from fastac.models import (
    ActorCritic,
    CategoricalHead,
    GaussianHead,
    IdentityCore,
    LSTMCore,
    MLPEncoder,
    NoObsNormalizer,
    Trunk,
)
from fastac.rollout import Collector, ModelActor, Rollout


class Recorder(gym.Env):
    """Keeps the actions it was given."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)
    action_space = Box(np.array([-0.1, -0.2], np.float32), np.array([0.1, 0.3], np.float32))

    def __init__(self):
        self.seen = []

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.seen.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


def act_with(model, rollout):
    return ModelActor(model, rollout, torch.Generator().manual_seed(0), CPU)


def make_lstm(num_actions=2, shared=True):
    trunks = [Trunk(MLPEncoder(1, (5,), "tanh"), LSTMCore(5, 4)) for _ in range(1 if shared else 2)]
    model = ActorCritic(trunks, CategoricalHead(4, num_actions), NoObsNormalizer())
    with torch.no_grad():
        model.head.layer.weight.mul_(100.0)
        for trunk in model.trunks:
            trunk.encoder.layers[0].weight.mul_(0.003)  # the chains show large numbers
    return model


def test_the_rollout_keeps_the_unclipped_action_and_the_env_gets_the_clipped_one():
    recorders = [Recorder(), Recorder()]
    queue = iter(recorders)
    envs = SyncEnvs(lambda: next(queue), [0, 1], "recorders")
    trunk = Trunk(MLPEncoder(1, (), "tanh"), IdentityCore(1))
    model = ActorCritic([trunk], GaussianHead(1, 2, 0.0), NoObsNormalizer())
    rollout = Rollout.allocate(10, 2, (1,), (2,), torch.float32, 0)
    Collector(envs, act_with(model, rollout), rollout).collect(Phases())
    assert rollout.action.abs().max() > 0.5
    for n, recorder in enumerate(recorders):
        stored = rollout.action[:, n].numpy()
        np.testing.assert_array_equal(np.stack(recorder.seen), stored.clip([-0.1, -0.2], [0.1, 0.3]).astype(np.float32))
    none, start = torch.zeros(2, 0), torch.zeros(2, dtype=torch.bool)
    log_prob, _, _ = evaluate_rows(model, rollout.obs[:-1], rollout.action, none, start)
    torch.testing.assert_close(rollout.log_prob, log_prob.detach())


def unroll(model, rollout):
    """Step a rollout's rows from its stored memory by the contract, and return values `[T+1, N]` and states."""
    state, values, states = rollout.state.clone(), [], [rollout.state.clone()]
    for t in range(rollout.num_steps + 1):
        _, value, state = model(rollout.obs[t], state, rollout.start[t])
        values.append(value)
        states.append(state)
    return torch.stack(values).detach(), [state.detach() for state in states]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", ["next_step", "own", "same_step", "disabled"])
def test_lstm_values_and_the_memory_before_row_0_across_rollouts(mode, shared):
    envs, model = make_chains(mode), make_lstm(shared=shared)
    rollout = allocate(6, len(CHAINS), state_size=model.state_size)
    collector = Collector(envs, act_with(model, rollout), rollout)
    carried = torch.zeros(len(CHAINS), model.state_size)
    for _ in range(5):
        collector.collect(Phases())
        torch.testing.assert_close(rollout.state, carried, rtol=0.0, atol=0.0)
        values, states = unroll(model, rollout)
        torch.testing.assert_close(rollout.value, values)
        carried = states[rollout.num_steps]  # before the row that was only valued
    assert carried.any()


def test_the_final_observation_is_valued_with_the_old_memory_and_the_reset_one_with_none():
    model = make_lstm()
    rollout = allocate(12, len(CHAINS), state_size=model.state_size)
    Collector(make_chains("next_step"), act_with(model, rollout), rollout).collect(Phases())
    _, states = unroll(model, rollout)
    fresh = model.initial_state(len(CHAINS))
    going_on, anew = torch.zeros(len(CHAINS), dtype=torch.bool), torch.ones(len(CHAINS), dtype=torch.bool)
    gaps = []
    for t, n in np.argwhere(rollout.done[:-1].numpy()):
        final = model.value(rollout.obs[t + 1], states[t + 1], going_on)[n]
        forgotten = model.value(rollout.obs[t + 1], fresh, anew)[n]
        assert rollout.value[t + 1, n] == pytest.approx(final.item(), abs=1e-6)
        gaps.append(abs(final.item() - forgotten.item()))
        assert not rollout.start[t + 1, n] and rollout.start[t + 2, n]
        reset = model.value(rollout.obs[t + 2], fresh, anew)[n]
        assert rollout.value[t + 2, n] == pytest.approx(reset.item(), abs=1e-6)
    assert len(gaps) > 10 and max(gaps) > 0.01


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_a_final_observation_out_of_band_is_valued_with_the_old_memory(mode):
    model = make_lstm()
    rollout = allocate(12, len(CHAINS), state_size=model.state_size)
    Collector(make_chains(mode), act_with(model, rollout), rollout).collect(Phases())
    _, states = unroll(model, rollout)
    going_on = torch.zeros(len(CHAINS), dtype=torch.bool)
    cut = (rollout.truncated & ~rollout.terminated).numpy()
    for t, n in np.argwhere(cut):
        final_obs = rollout.obs[t] + 1.0  # the chain's next position
        expected = model.value(final_obs, states[t + 1], going_on)[n]
        assert rollout.final_value[t, n] == pytest.approx(expected.item(), abs=1e-6)
    assert cut.sum() > 5 and not rollout.final_value[torch.from_numpy(~cut)].any()


def test_collecting_twice_does_not_keep_final_values_of_the_rollout_before():
    collector = make_collector(make_chains("same_step", ({"lengths": (5,), "endings": ("truncated",)},)), 3)
    marks = [collector.collect(Phases()).out_of_band[:, 0].tolist() for _ in range(4)]
    assert marks == [[False] * 3, [False, True, False], [False] * 3, [True, False, False]]


def test_the_row_after_the_last_is_carried_over():
    collector = make_collector(make_chains("next_step"), 5)
    for _ in range(4):
        rollout = collector.collect(Phases())
        obs, start, value = rollout.obs[-1].clone(), rollout.start[-1].clone(), rollout.value[-1].clone()
        rollout = collector.collect(Phases())
        assert torch.equal(rollout.obs[0], obs) and torch.equal(rollout.start[0], start)
        assert torch.equal(rollout.value[0], value)


def test_a_restart_begins_from_resets_with_no_memory():
    collector = make_collector(make_chains("next_step"), 5)
    collector.collect(Phases())
    collector.restart_episodes()
    rollout = collector.collect(Phases())
    assert rollout.start[0].all() and not rollout.state.any()
    assert (rollout.obs[0] % 100 == 0).all()


class Broken(gym.Env):
    """Returns NaN at its third step."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, what):
        self._what, self._steps = what, 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._steps += 1
        number = np.nan if self._steps == 3 else 0.0
        obs = np.full(1, number if self._what == "observation" else 0.0, np.float32)
        return obs, number if self._what == "reward" else 0.0, False, False, {}


@pytest.mark.parametrize(("what", "row"), [("observation", 3), ("reward", 2)])
def test_a_number_that_is_not_finite_is_found(what, row):
    queue = iter(["nothing", what])
    envs = SyncEnvs(lambda: Broken(next(queue)), [0, 1], "broken")
    model = make_lstm()
    rollout = allocate(6, 2, state_size=model.state_size)
    collected = Collector(envs, act_with(model, rollout), rollout).collect(Phases())
    with pytest.raises(EnvFailure, match=f"env 1 returned an? {what} that is not finite in row {row} "):
        collected.check_finite()


# --- whole episodes ------------------------------------------------------------------------------


def test_episodes_mode_takes_each_envs_first_episode_and_no_more():
    collector = make_collector(make_chains("next_step"), 9)
    for _ in range(4):
        rollout = collector.collect_episodes(Phases())
        assert rollout.start[0].all() and not rollout.state.any()
        assert (rollout.obs[0] % 100 == 0).all()
        for n in range(rollout.num_envs):
            end = int(np.flatnonzero(rollout.done[:, n].numpy())[0])
            assert rollout.valid[: end + 1, n].all() and not rollout.valid[end + 1 :, n].any()
            assert int(rollout.done[:, n].sum()) == 1
        assert rollout.num_steps == int(rollout.valid.sum(dim=0).max())


class Numbered(gym.Env):
    """Episodes of one step; each tells its number."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, length):
        self._length, self._number, self._step = length, 0, 0

    def reset(self, *, seed=None, options=None):
        self._number, self._step = self._number + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._step += 1
        return np.zeros(1, np.float32), 0.0, self._step == self._length, False, {"number": self._number}


def make_numbered():
    envs = iter([Numbered(1), Numbered(3)])
    return make_collector(SyncEnvs(lambda: next(envs), [0, 1], ""), 4)


def test_what_episodes_tell_comes_in_order_of_time_then_env():
    collector = make_numbered()
    assert collector.take_extras() == {}
    collector.collect(Phases())  # env 0 ends at rows 0 and 2, env 1 at row 2
    assert {key: values.tolist() for key, values in collector.take_extras().items()} == {"number": [1, 2, 1]}
    assert collector.take_extras() == {}


def test_episodes_mode_hears_of_each_envs_first_episode_and_no_more():
    collector = make_numbered()
    for iteration in range(2):
        collector.collect_episodes(Phases())
        told = collector.take_extras()["number"].tolist()
        assert told == [[1, 1], [3, 2]][iteration]  # env 0 has begun another one meanwhile


def test_rows_after_an_episode_pay_nothing():
    rollout = make_collector(make_chains("next_step"), 9).collect_episodes(Phases())
    assert not rollout.valid.all()
    assert not rollout.reward[~rollout.valid].any(), "the contract says reward 0 where not valid"


ONE_ENDING = ({"lengths": (3,), "endings": ("terminated",)}, {"lengths": (5, 2), "endings": ("terminated",)})


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled", "own"])
@pytest.mark.parametrize("baseline", [True, False])
def test_reinforce_advantages_are_monte_carlo_returns(mode, baseline):
    collector = make_collector(make_chains(mode, ONE_ENDING), 9)
    settings = {"algo": "reinforce", "collect": "episodes", "gae_lambda": 1.0, "baseline": baseline}
    for _ in range(3):
        rollout = collector.collect_episodes(Phases())
        value = rollout.value.clone()
        estimate(rollout, **settings)
        for n in range(2):
            steps = int(rollout.valid[:, n].sum())
            assert rollout.terminated[steps - 1, n]
            reward = rollout.reward[:steps, n].tolist()
            for t in range(steps):
                total = sum(0.9**k * number for k, number in enumerate(reward[t:]))
                expected = total - (value[t, n].item() if baseline else 0.0)
                assert float(rollout.advantage[t, n]) == pytest.approx(expected, abs=1e-3)
                assert float(rollout.return_[t, n]) == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled", "own"])
@pytest.mark.parametrize("baseline", [True, False])
def test_reinforce_bootstraps_from_a_time_limit_only_with_a_baseline(mode, baseline):
    collector = make_collector(make_chains(mode, ({"lengths": (2,), "endings": ("truncated",)},)), 5)
    rollout = collector.collect_episodes(Phases())
    estimate(rollout, algo="reinforce", collect="episodes", gae_lambda=1.0, baseline=baseline)
    beyond = known_value(2.0, 2.0) if baseline else 0.0
    expected = [1.0 + 0.9 * 2.1 + 0.81 * beyond, 2.1 + 0.9 * beyond]
    assert rollout.return_[:2, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_an_episode_longer_than_the_rollout_is_cut_and_bootstrapped():
    collector = make_collector(make_chains("next_step", ({"lengths": (9,), "endings": ("terminated",)},)), 4)
    truth = Truth(({"lengths": (9,), "endings": ("terminated",)},))
    rollout = collector.collect_episodes(Phases())
    estimate(rollout, gae_lambda=1.0)
    expected = truth.next(rollout.valid.numpy(), lam=1.0)
    np.testing.assert_allclose(rollout.advantage.numpy(), expected["advantage"], rtol=1e-5, atol=1e-4)
    assert not rollout.done.any() and rollout.num_steps == 4
    # The next iteration is of another episode.
    assert collector.collect_episodes(Phases()).obs[0, 0, 0].item() == 100.0


def test_an_episode_that_was_cut_does_not_count_towards_the_next_one():
    # Some of CartPole's episodes end within 12 steps, and none that is reported can be longer.
    training = training_of(collect="episodes", num_steps=12, num_envs=4)
    finished = [episode for report in islice(training.trainer.run(), 40) for episode in report.finished]
    assert len(finished) > 10
    assert max(episode.length for episode in finished) <= 12
    assert all(episode.return_ == episode.length for episode in finished)


@pytest.mark.parametrize("num_steps", [4, 20])
def test_reward_scaling_begins_each_iteration_anew_where_episodes_do(num_steps):
    # What is left of the discounted return of the iteration before must not leak into a new episode.
    training = training_of(collect="episodes", num_steps=num_steps, num_envs=4, normalize_reward=True, gamma=1.0)
    run_iterations(training, 20)
    # Reward 1 a step: no return so far exceeds the steps of one episode.
    assert training.worker.shards[0].reward_normalizer.moments.mean.item() <= num_steps
    assert training.worker.shards[0].reward_normalizer.running.max().item() <= num_steps


def test_episodes_mode_equals_steps_mode_up_to_the_end_of_each_first_episode():
    by_steps = make_collector(make_chains("next_step"), 4).collect(Phases())
    by_episode = make_collector(make_chains("next_step"), 4).collect_episodes(Phases())
    for rollout in (by_steps, by_episode):
        estimate(rollout, gae_lambda=LAMBDA)
    kept = by_episode.valid
    assert torch.equal(by_steps.advantage[kept], by_episode.advantage[kept])
    assert torch.equal(by_steps.return_[kept], by_episode.return_[kept])
