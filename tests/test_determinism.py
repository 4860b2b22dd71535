"""The same seed gives the same bits; other seeds share no stream; a saved run goes on as if nothing had happened."""

from itertools import islice

import numpy as np
import pytest
import torch
from core_support import PROBES, assert_same, make_training, run_iterations, weights

from fastac.build import Streams, build, build_envs, evaluation_seed, restart_seed
from fastac.config import Config
from fastac.runs.checkpoint import load_checkpoint, save_checkpoint

NATIVE = {"vectorization": "native", "num_envs": 4}
RUNS = {
    "a2c": {**NATIVE, "num_steps": 8},
    "a2c, envs one by one": {"vectorization": "sync", "num_envs": 4, "num_steps": 8},
    "ppo": {**NATIVE, "algo": "ppo", "num_steps": 16, "num_epochs": 2, "num_minibatches": 4},
    "reinforce": {**NATIVE, "algo": "reinforce", "collect": "episodes", "gae_lambda": 1.0, "num_steps": 40},
    "a dict, flattened": {
        **{"env_id": f"{PROBES}DictReward-v0", "vectorization": "sync"},
        **{"num_envs": 4, "num_steps": 7, "normalize_obs": True},
    },
    "squashed": {
        **{"env_id": "Pendulum-v1", "vectorization": "sync", "squash_actions": True, "dependent_std": True},
        **{"num_envs": 4, "num_steps": 70, "algo": "ppo", "num_epochs": 2, "num_minibatches": 2},
    },
    "everything": {
        **NATIVE,
        "algo": "ppo",
        "core": "lstm",
        "lstm_size": 8,
        "shared_trunk": False,
        "num_steps": 12,
        "num_epochs": 2,
        "num_minibatches": 2,
        "normalize_obs": True,
        "normalize_reward": True,
        "normalize_advantage": True,
        "learning_rate_schedule": "linear",
        "ent_coef_schedule": "linear",
        "clip_coef_schedule": "linear",
        "total_env_steps": 400,
    },
}
EVERY_RUN = pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)


def without_time(report):
    return (report.iteration, report.env_steps, report.updates, report.episodes, report.finished, report.losses)


@EVERY_RUN
def test_the_same_seed_gives_the_same_bits(settings):
    runs = []
    for _ in range(2):
        torch.manual_seed(len(runs))  # nothing may depend on the global stream
        np.random.seed(len(runs))
        training = make_training(**settings, seed=7)
        reports = [without_time(report) for report in islice(training.trainer.run(), 5)]
        runs.append((weights(training), repr(reports)))
    assert_same(*(run[0] for run in runs))
    assert runs[0][1] == runs[1][1]


def test_other_seeds_give_other_weights_actions_and_observations():
    one, two = (make_training(num_envs=4, num_steps=8, seed=seed) for seed in (0, 1))
    for name, value in weights(one).items():
        assert torch.equal(value, weights(two)[name]) == name.endswith("bias"), name  # biases begin at 0
    run_iterations(one, 1)
    run_iterations(two, 1)
    assert not torch.equal(one.rollouts[0].action, two.rollouts[0].action)
    # No environment of one run begins like any of the other.
    firsts = torch.cat([one.rollouts[0].obs[0], two.rollouts[0].obs[0]])
    assert len(firsts.unique(dim=0)) == 8


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_neighbouring_seeds_share_no_environment_stream(vectorization):
    begins = set()
    for seed in range(4):
        training = make_training(num_envs=8, num_steps=1, seed=seed, vectorization=vectorization)
        run_iterations(training, 1)
        begins |= {tuple(row.tolist()) for row in training.rollouts[0].obs[0]}
    assert len(begins) == 32


def test_the_streams_of_a_run_are_apart():
    numbers = set()
    for seed in range(50):
        streams = Streams.spawn(seed)
        numbers |= {streams.model, streams.actions, int(streams.env.generate_state(1, np.uint64)[0])}
        for env_steps in (0, 1000):
            for derived in (evaluation_seed(seed, env_steps), restart_seed(seed, env_steps)):
                numbers.add(int(derived.generate_state(1, np.uint64)[0]))
    assert len(numbers) == 50 * 7


CASES = [(name, "adam") for name in RUNS] + [("everything", "rmsprop_tf"), ("a2c", "rmsprop"), ("ppo", "rmsprop_tf")]


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_a_saved_run_goes_on_bit_for_bit(name, optimizer, tmp_path):
    settings = RUNS[name] | {"seed": 5, "optimizer": optimizer}
    straight = make_training(**settings)
    expected = [without_time(report) for report in islice(straight.trainer.run(), 6)]

    first = make_training(**settings)
    got = [without_time(report) for report in islice(first.trainer.run(), 3)]
    path = save_checkpoint(tmp_path, first.trainer.env_steps, first.get_state(), Config().replace(**settings))
    run_iterations(first, 1)  # what goes on after saving must not reach what was saved

    second = make_training(**settings)
    run_iterations(second, 1)  # nor may anything of the run it is loaded into survive
    loaded = load_checkpoint(path)
    assert loaded.config == Config().replace(**settings)
    assert second.set_state(loaded.state) is True
    got += [without_time(report) for report in islice(second.trainer.run(), 3)]

    assert repr(got) == repr(expected)
    ends = [timeless(training.get_state()) for training in (straight, second)]
    assert_same(*ends)


def timeless(state):
    """Drop the clocks of a state."""
    trainer = {name: value for name, value in state["trainer"].items() if name not in ("phases", "train_wall_s")}
    return plain(state | {"trainer": trainer})


def plain(tree):
    return {name: plain(value) for name, value in tree.items()} if hasattr(tree, "items") else tree


def test_without_the_environments_state_episodes_begin_anew_and_nothing_else_is_lost():
    settings = {"num_envs": 4, "num_steps": 8, "normalize_obs": True, "core": "lstm", "lstm_size": 8}
    first = make_training(**settings)
    run_iterations(first, 3)
    state = first.get_state()
    state["shards"] = {"0": dict(state["shards"]["0"], envs=None)}
    second = make_training(**settings)
    assert second.set_state(state) is False
    assert_same(weights(first), weights(second))
    (report,) = islice(second.trainer.run(), 1)
    assert report.iteration == 4 and report.env_steps == first.trainer.env_steps + int(second.rollouts[0].valid.sum())
    assert second.rollouts[0].start[0].all() and not second.rollouts[0].state.any()


def test_reward_scaling_forgets_episodes_that_are_not_gone_on_with():
    settings = {"num_envs": 4, "num_steps": 5, "normalize_reward": True}
    first = make_training(**settings)
    run_iterations(first, 1)
    state = first.get_state()
    state["shards"] = {"0": dict(state["shards"]["0"], envs=None)}
    second = make_training(**settings)
    second.set_state(state)
    assert first.worker.shards[0].reward_normalizer.running.any()
    assert not second.worker.shards[0].reward_normalizer.running.any()


def test_the_same_seed_gives_the_same_weights_under_any_thread_count():
    config = Config().replace(hidden_sizes=(64, 64), num_envs=4)
    envs = build_envs(config.env, Streams.spawn(0).env)
    before = torch.get_num_threads()
    weights = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = build(config, envs).model
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
        envs.close()
    assert torch.equal(*weights)
