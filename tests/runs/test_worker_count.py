"""The default number of workers: as many as make the run shortest, without any effect on results."""

import logging
import math
import random
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from core_support import assert_same

import fastac
from fastac.build import resolve_shards
from fastac.config import Config
from fastac.runs import worker_count
from fastac.runs.efficiency import BareTimes
from fastac.runs.worker_count import choose_workers

SLOW = {"env_id": "LunarLander-v3", "num_envs": 16, "num_steps": 16, "total_env_steps": 10**6, "shards": 8}


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr("fastac.build.shares.count_physical_cores", lambda: 4)


def choose(row_s, factory=None, steps_done=0, **settings):
    asked = []

    def measure(config, *given):
        asked.append(config)
        return bare(row_s)

    found = choose_workers(Config().replace(**(SLOW | settings)), factory, None, steps_done, measure)
    return found.run, len(asked)


def bare(row_s):
    """Times of a step of two environments, half of which is theirs."""
    return BareTimes(
        env_s=row_s / 2, forward_s=row_s / 2, learn_forward_s=0.0, backward_s=0.0, learn_forwards=0, backwards=0
    )


@pytest.mark.parametrize(
    ("row_s", "settings", "workers"),
    [
        (1e-3, {}, 4),  # 8 shards: 500 s with one, 129 s with four
        (1e-5, {}, 1),  # 5 s with one; the others would begin after 4 s
        (1e-3, {"total_env_steps": 10_000}, 1),  # 5 s
        (1e-3, {"budget_minutes": 0.05}, 1),  # 3 s
        (1e-3, {"budget_minutes": 5.0}, 4),
        (1e-3, {"shards": 3, "num_envs": 18}, 3),
        (1e-4, {"num_epochs": 10, "num_minibatches": 8, "num_steps": 4}, 1),  # mostly exchanges: 2,000 a second
        (1e-3, {"torch_threads": 2}, 2),
    ],
)
def test_as_many_as_make_the_run_shortest(cores, row_s, settings, workers):
    found, measured = choose(row_s, **settings)
    assert found.workers == workers and measured == 1


def test_predictions_by_hand(monkeypatch):
    config = resolve_shards(Config().replace(**SLOW))
    assert config.run.shards == 8
    updates = 62_500 / 16
    predicted = [worker_count._predict_s(config, 10**6, workers, bare(1e-3 / 2)) for workers in (1, 3)]
    assert predicted == pytest.approx([62_500 * 8 * 1e-3 / 2, 4.0 + 62_500 * 3 * 1e-3 / 2 + updates * 1e-4])
    # Steps of 1 ms each: one worker would step both environments of a shard in processes of their own.
    monkeypatch.setattr("fastac.build.shares.count_cores", lambda: 8)
    assert worker_count._predict_s(config, 10**6, 1, bare(4e-3)) == pytest.approx(62_500 * 8 * 4e-3)
    monkeypatch.setattr("fastac.build.shares.count_cores", lambda: 16)
    assert worker_count._predict_s(config, 10**6, 1, bare(4e-3)) == pytest.approx(62_500 * 8 * (1e-3 + 2e-3))
    assert worker_count._predict_s(config.replace(vectorization="sync"), 10**6, 1, bare(4e-3)) == pytest.approx(
        62_500 * 8 * 4e-3
    )


def test_only_the_steps_that_are_left_count(cores):
    assert choose(1e-3)[0].workers == 4
    assert choose(1e-3, steps_done=990_000)[0].workers == 1


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        ({"workers": 2}, 2),
        ({"total_env_steps": 4_000}, 1),
        ({"env_id": "CartPole-v1", "num_envs": 64, "shards": "auto"}, 1),  # one shard
        ({"vectorization": "process", "shards": "auto"}, 1),
        ({"algo": "a3c", "shards": "auto"}, 4),  # all cores
        ({"algo": "a3c", "shards": 2}, 2),  # which are its workers
    ],
)
def test_where_there_is_nothing_to_choose_nothing_is_measured(cores, settings, workers):
    found, measured = choose(math.nan, **settings)
    assert found.workers == workers and measured == 0


def test_environments_that_cannot_be_measured_are_left_to_the_run(cores):
    def fail(*_):
        raise RuntimeError("no such simulator")

    assert choose_workers(Config().replace(**SLOW), None, None, 0, fail).run.workers == 1


def test_global_random_streams_are_those_of_before(cores):
    def draw(config, *_):
        np.random.rand(), random.random(), torch.rand(1)
        return bare(1e-3)

    def state():
        return np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()

    before = state()
    choose_workers(Config().replace(**SLOW), None, None, 0, draw)
    assert state() == before


def test_functions_of_the_user_are_not_measured_and_specs_are(cores):
    assert choose(1e-3, lambda: None)[1] == choose(1e-3, gym.envs.classic_control.CartPoleEnv)[1] == 0
    found, measured = choose(1e-3, gym.spec("LunarLander-v3"))
    assert found.workers == 4 and measured == 1


def test_measured_on_real_environments_and_told_in_one_line(cores, monkeypatch, caplog):
    monkeypatch.setattr(worker_count, "_START_S", 1e9)
    with caplog.at_level(logging.INFO, "fastac"):
        run = choose_workers(Config().replace(**SLOW), None, None).run
    assert (run.shards, run.workers) == (8, 1)
    (line,) = caplog.messages
    told = r"workers 1, chosen of at most 4: about \d+ s, start-up included, and \d+ s with 4 \(measured: [\d.]+ ms for"
    assert re.match(told, line)


def test_workers_that_raise_the_number_of_shards_are_told(cores, caplog):
    with caplog.at_level(logging.INFO, "fastac"):
        assert choose(1e-3, shards="auto", workers=4)[0].shards == 4
        assert choose(1e-3, shards="auto", workers=2)[0].shards == 2  # as by default
    assert caplog.messages == [
        "shards 4, one per worker: with another number of workers, --shards 4 gives the same results"
    ]


@pytest.mark.parametrize("settings", [{"algo": "a3c"}, {"envs_per_worker": 4}])
def test_workers_that_are_part_of_the_algorithm_do_not_change_on_resume(tmp_path, settings):
    few = {"workers": 2, "num_steps": 8, "eval": False, "total_env_steps": 200, "tensorboard": False}
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **few, **settings)
    for workers in (1, "auto"):
        with pytest.raises(ValueError, match=f"workers is {workers!r}, expected 2: how many environments each"):
            fastac.resume(tmp_path / "run", total_env_steps=400, workers=workers)


def test_resume_changes_the_number_of_workers_and_nothing_else(tmp_path):
    settings = {**SLOW, "env_id": "CartPole-v1", "shards": 4, "eval": False, "checkpoint_every": 0}
    states = []
    for name, before, after in (("one", 1, 1), ("two", 2, 3)):
        fastac.train(run_dir=tmp_path / name, env="CartPole-v1", **rest(settings, before, 4_000))
        run = fastac.complete(fastac.resume(tmp_path / name, total_env_steps=8_000, workers=after))
        assert run.summary["workers"] == after
        states.append(fastac.load(tmp_path / name, checkpoint="last").policy.model.state_dict())
    assert_same(*map(dict, states))
    with pytest.raises(ValueError, match="workers is 5, expected at most 4, the number of shards"):
        fastac.resume(tmp_path / "one", total_env_steps=9_000, workers=5)


def rest(settings, workers, total_env_steps):
    return {k: v for k, v in settings.items() if k != "env_id"} | {
        "workers": workers,
        "total_env_steps": total_env_steps,
    }
