"""Learning on the probe environments finds their known values and best actions."""

import numpy as np
import pytest
import torch
from core_support import CPU, PROBES, make_training

from fastac.config import EnvConfig
from fastac.envs import make_vec
from fastac.runs.evaluate import evaluate
from fastac.runs.player import make_player

GAMMA = 0.9
ALGOS = {
    "a2c": {"algo": "a2c", "learning_rate": 0.015},
    "ppo": {"algo": "ppo", "learning_rate": 0.015, "num_epochs": 2, "normalize_advantage": True},
}
SMALL = {
    "num_envs": 16,
    "num_steps": 6,
    "hidden_sizes": (16,),
    "activation": "tanh",
    "gamma": GAMMA,
    "vectorization": "sync",
    "total_env_steps": 10**9,
}


def train(probe, env_steps, **settings):
    """Train on a probe."""
    training = make_training(**(SMALL | {"env_id": f"{PROBES}{probe}-v0", "total_env_steps": env_steps} | settings))
    for _ in training.trainer.run():
        pass
    return training


def values(training, *seen):
    """Return V of observations of one number."""
    obs = torch.tensor(seen).unsqueeze(-1)
    start = torch.ones(len(seen), dtype=torch.bool)
    return training.model.value(obs, training.model.initial_state(len(seen)), start).tolist()


def greedy(training, *seen):
    """Return the most likely actions for observations of one number."""
    obs = torch.tensor(seen).unsqueeze(-1)
    start = torch.ones(len(seen), dtype=torch.bool)
    action, _ = training.model.greedy(obs, training.model.initial_state(len(seen)), start)
    return action.tolist()


def mean_return(training, probe, episodes=100):
    """Play greedily in new environments."""
    envs = make_vec(EnvConfig(f"{PROBES}{probe}-v0", 10, "sync"), np.random.SeedSequence(123))
    return evaluate(make_player(training.model, envs.num_envs, CPU), envs, episodes).mean_return


@pytest.fixture(params=ALGOS)
def algo(request):
    return ALGOS[request.param]


# Where what is looked at is the same for all algorithms.
one_algo_and_slowly_all = pytest.mark.parametrize(
    "algo", ["ppo", pytest.param("a2c", marks=pytest.mark.slow)], indirect=True
)


def test_the_value_of_a_constant_reward(algo):
    assert values(train("ConstantReward", 6_000, **algo), 0.0) == pytest.approx([1.0], abs=0.02)


def test_the_value_of_an_observation(algo):
    assert values(train("ObsReward", 7_000, **algo), -1.0, 1.0) == pytest.approx([-1.0, 1.0], abs=0.1)


def test_the_value_of_a_delayed_reward_is_discounted(algo):
    assert values(train("DelayedReward", 7_000, **algo), 0.0, 1.0) == pytest.approx([GAMMA, 1.0], abs=0.05)


def test_the_better_action(algo):
    training = train("ActionReward", 6_000, **algo)
    assert greedy(training, 0.0) == [1]
    assert values(training, 0.0) == pytest.approx([1.0], abs=0.1)


def test_the_better_action_for_what_is_seen(algo):
    training = train("ObsActionReward", 8_000, **algo)
    assert greedy(training, -1.0, 1.0) == [0, 1]
    assert values(training, -1.0, 1.0) == pytest.approx([1.0, 1.0], abs=0.15)
    assert mean_return(training, "ObsActionReward") == 1.0


def test_the_best_continuous_action(algo):
    training = train("ContinuousReward", 10_000, log_std_init=-0.5, **algo)
    assert greedy(training, 0.0)[0] == pytest.approx([0.5], abs=0.1)


@one_algo_and_slowly_all
def test_the_best_of_several_discrete_actions(algo):
    training = train("MultiDiscreteReward", 7_000, **algo)
    assert greedy(training, 0.0) == [[1, 2]]
    assert values(training, 0.0) == pytest.approx([1.0], abs=0.1)


@one_algo_and_slowly_all
def test_the_best_bits(algo):
    training = train("MultiBinaryReward", 7_000, **algo)
    assert greedy(training, 0.0) == [[1, 0, 1]]
    assert values(training, 0.0) == pytest.approx([1.0], abs=0.1)


@one_algo_and_slowly_all
def test_the_best_action_for_all_that_a_dict_shows(algo):
    training = train("DictReward", 12_000, **algo)
    assert mean_return(training, "DictReward") == 1.0


@pytest.mark.parametrize("dependent_std", [False, True])
def test_the_best_continuous_action_squashed(algo, dependent_std):
    training = train(
        "ContinuousReward", 10_000, log_std_init=-0.5, squash_actions=True, dependent_std=dependent_std, **algo
    )
    assert np.tanh(greedy(training, 0.0)[0]) == pytest.approx([0.5], abs=0.1)


@pytest.mark.parametrize("baseline", [True, False])
def test_reinforce_finds_the_better_action(baseline):
    settings = {"algo": "reinforce", "collect": "episodes", "gae_lambda": 1.0, "learning_rate": 0.03}
    training = train("ObsActionReward", 4_000, baseline=baseline, **settings)
    assert greedy(training, -1.0, 1.0) == [0, 1]


MEMORY = {
    "num_envs": 32,
    "num_steps": 10,
    "gae_lambda": 0.9,
    "gamma": 0.95,
    "algo": "ppo",
    "num_epochs": 2,
    "num_minibatches": 2,
    "learning_rate": 0.01,
    "normalize_advantage": True,
    "lstm_size": 16,
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_memory_is_learned_by_an_lstm(seed):
    training = train("Memory", 12_000, core="lstm", seed=seed, **MEMORY)
    assert mean_return(training, "Memory") > 0.95


def test_memory_stays_at_chance_without_one():
    training = train("Memory", 12_000, core="identity", seed=0, **MEMORY)
    assert abs(mean_return(training, "Memory", 400)) < 0.3
