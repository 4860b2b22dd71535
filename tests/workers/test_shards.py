"""Shards: the same bits whoever holds them, in whichever process, and after a resume with other workers."""

from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from core_support import assert_same

from fastac.build import Streams, assemble, resolve_workers
from fastac.config import Config
from fastac.contract import Alone, EnvFailure, Phases
from fastac.workers import divide_shards, shared_group

SMALL = {"num_envs": 8, "num_steps": 8, "shards": 4, "hidden_sizes": (8,), "total_env_steps": 10**6}
KNOBS = {
    **{"algo": "ppo", "num_epochs": 4, "num_minibatches": 2, "shared_trunk": False, "optimizer": "rmsprop"},
    **{"normalize_advantage": True, "advantage_scope": "rollout", "clip_value_coef": 0.05, "target_kl": 1e-3},
    **{"learning_rate": 1e-3, "critic_learning_rate": 3e-3, "learning_rate_schedule": "adaptive"},
}
CASES = {
    "a2c": {},
    "a2c, separate, all normalised": {"shared_trunk": False, "normalize_obs": True, "normalize_reward": True},
    "ppo": {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2, "normalize_advantage": True},
    "ppo, all knobs": KNOBS,
    "lstm": {"core": "lstm", "lstm_size": 8},
    "ppo, gru": {"algo": "ppo", "core": "gru", "lstm_size": 8, "num_epochs": 2, "num_minibatches": 2},
    "whole episodes": {"algo": "reinforce", "collect": "episodes", "gae_lambda": 1.0, "num_steps": 64},
    "masks in a dict, gru": {"env_id": "masked_envs:MaskedByKey", "core": "gru", "lstm_size": 8, "normalize_obs": True},
    "pixels, normalised": {
        **{"env_id": "dict_envs:Signs", "drop_keys": ("mission", "number", "kind", "nested"), "normalize_obs": True},
        **{"encoder": "minatar", "algo": "ppo", "num_minibatches": 2},
    },
    "by autograd": {"encoder": "shards_support:make_encoder"},
    "one by one": {"env_id": "Pendulum-v1", "vectorization": "sync", "num_steps": 64},
}


def open_training(workers, state=None, **settings):
    config = resolve_workers(Config().replace(**(SMALL | settings | {"workers": workers})))
    training = assemble(config, Streams.spawn(config.run.seed).env)
    if state is not None:
        assert training.set_state(state)
    return closing(training)


def train(workers, iterations=12, state=None, **settings):
    """Return what a run has come to: its state without the clock, its episodes and its losses."""
    with open_training(workers, state, **settings) as training:
        reports = list(islice(training.trainer.run(), iterations))
        found = training.get_state()
        whole = {**found, "trainer": dict(found["trainer"]), "model": copy_tree(found["model"])}
    for clock in ("phases", "train_wall_s"):
        whole["trainer"].pop(clock)
    episodes = [(e.return_, e.length) for report in reports for e in report.finished]
    return whole, episodes, [report.losses for report in reports], found


def copy_tree(tree):
    return {name: value.clone() for name, value in tree.items()}


def assert_equal_runs(one, other):
    assert one[1] == other[1] and one[2] == other[2]
    assert_same(*(dict(to_plain(run[0])) for run in (one, other)))


def to_plain(tree):
    """Make dicts and arrays of mappings and tensors: they come from other processes as arrays."""
    if isinstance(tree, torch.Tensor):
        return tree.numpy()
    return {name: to_plain(part) for name, part in tree.items()} if hasattr(tree, "items") else tree


@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_the_number_of_workers(case):
    one = train(1, **CASES[case])
    assert one[1], "no episode has ended"
    assert_equal_runs(one, train(3, **CASES[case]))  # which have 1, 1 and 2 shards


def test_all_workers_end_the_same_epochs_early():
    settings = KNOBS | {"learning_rate_schedule": "linear", "learning_rate": 1e-2}
    one, two, four = (train(workers, 4, **settings) for workers in (1, 2, 4))
    assert_equal_runs(one, two)
    assert_equal_runs(one, four)
    epochs = [losses["epochs"] for losses in one[2]]
    assert min(epochs) < 4 and one[0]["trainer"]["learner"]["updates"] == 2 * sum(epochs)


@pytest.mark.parametrize("few_numbers", [0, 10**9])
@pytest.mark.parametrize("settings", [{}, KNOBS])
def test_it_does_not_matter_whether_parameters_are_shared(few_numbers, settings, monkeypatch):
    monkeypatch.setattr(shared_group, "_FEW_NUMBERS", few_numbers)
    assert_equal_runs(train(1, **settings), train(2, **settings))


def test_a_run_goes_on_with_another_number_of_workers():
    whole = train(1, 12, **CASES["ppo"])
    for first, second in ((1, 4), (4, 1), (2, 3)):
        half = train(first, 5, **CASES["ppo"])
        rest = train(second, 7, half[3], **CASES["ppo"])
        assert_same(*(dict(to_plain(run[0])) for run in (whole, rest)))
        assert half[1] + rest[1] == whole[1] and half[2] + rest[2] == whole[2]


def test_one_shard_is_the_run_of_before_and_more_shards_are_another():
    bits = [train(1, 3, shards=shards)[0]["model"] for shards in ("auto", 1, 2)]
    assert_same(bits[0], bits[1])
    assert any(not torch.equal(value, bits[2][name]) for name, value in bits[0].items())


def test_shards_have_streams_of_their_own():
    state = train(1, 3)[0]["shards"]
    assert list(state) == ["0", "1", "2", "3"]
    for of in (lambda s: s["collector"]["obs"], lambda s: s["collector"]["actor"]["generator"]):
        seen = {np.asarray(of(shard)).tobytes() for shard in state.values()}
        assert len(seen) == 4


def test_a_failure_names_the_env_by_its_number_in_the_run():
    with open_training(2) as training:
        assert [shard._first_env for shard in training.worker.shards] == [0, 2]
        shard = training.worker.shards[1]
        shard._collector.collect = fail
        with pytest.raises(EnvFailure, match=r"^env 3 raised KeyError in step"):
            shard.collect(Phases())


def fail(phases):
    raise EnvFailure("env 1 raised KeyError in step")


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (4, 2), (5, 3), (8, 8), (7, 2)])
def test_every_shard_has_one_worker_and_they_have_about_as_many(shards, workers):
    parts = divide_shards(shards, workers)
    assert [number for part in parts for number in part] == list(range(shards))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and len(parts) == workers


def test_a_single_worker_gathers_its_own_rows():
    rows = np.arange(6.0).reshape(2, 3)
    assert Alone(2).gather(rows) is rows
    ops, found = Alone(2).prepare_gather(torch.from_numpy(rows))
    assert ops == [] and found.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_envs": 8, "shards": 3}, "num_envs is 8, expected a multiple of shards, which is 3"),
        ({"num_envs": 8, "shards": 2, "workers": 4}, "workers is 4, expected at most 2, the number of shards"),
        ({"shards": 2, "vectorization": "process"}, "shards is 2 with vectorization process, expected 1"),
        ({"shards": 0}, "shards is 0, expected a whole number from 1 to 1024, or auto"),
        ({"num_envs": 8, "shards": 4, "algo": "a3c", "workers": 2}, "shards is 4 with algo a3c and workers 2"),
        ({"num_envs": 8, "num_steps": 2, "shards": 4, "num_minibatches": 8}, "divisor of 4, .* of one shard"),
    ],
)
def test_shards_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Config().replace(**settings)
