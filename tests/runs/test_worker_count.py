"""The default number of workers: as many as make the run shortest, without any effect on results."""

import logging
import math

import pytest
from core_support import assert_same

import fastac
from fastac.build import resolve_shards
from fastac.config import Config
from fastac.runs import worker_count
from fastac.runs.worker_count import choose_workers

SLOW = {"env_id": "LunarLander-v3", "num_envs": 16, "num_steps": 16, "total_env_steps": 10**6, "shards": 8}


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr("fastac.build.shares.count_physical_cores", lambda: 4)


def choose(row_s, factory=None, **settings):
    asked = []

    def measure(config, *given):
        asked.append(config)
        return row_s

    return choose_workers(Config().replace(**(SLOW | settings)), factory, None, measure).run, len(asked)


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


def test_predictions_by_hand():
    config = resolve_shards(Config().replace(**SLOW))
    assert config.run.shards == 8
    assert worker_count._predict_s(config, 1, 1e-3) == pytest.approx(62_500 * 8 * 1e-3)
    updates = 62_500 / 16
    assert worker_count._predict_s(config, 3, 1e-3) == pytest.approx(4.0 + 62_500 * 3 * 1e-3 + updates * 1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 2},
        {"total_env_steps": 4_000},
        {"env_id": "CartPole-v1", "num_envs": 64, "shards": "auto"},  # one shard
        {"vectorization": "process", "shards": "auto"},
        {"algo": "a3c", "workers": "auto", "shards": "auto"},
    ],
)
def test_where_there_is_nothing_to_choose_nothing_is_measured(cores, settings):
    found, measured = choose(math.nan, **settings)
    assert measured == 0
    assert found.workers == settings.get("workers", 1) or found.workers == 4  # a3c: all cores


def test_functions_that_only_this_process_has_are_not_sent(cores):
    found, measured = choose(1e-3, lambda: None)
    assert found.workers == 1 and measured == 0


def test_measured_on_real_environments_and_told_in_one_line(cores, monkeypatch, caplog):
    monkeypatch.setattr(worker_count, "_START_S", 1e9)
    with caplog.at_level(logging.INFO, "fastac"):
        run = choose_workers(Config().replace(**SLOW), None, None).run
    assert (run.shards, run.workers) == (8, 1)
    (line,) = caplog.messages
    assert line.startswith("workers 1: a step of 16 envs takes ") and line.endswith(" s with 4")


def test_resume_changes_the_number_of_workers_and_nothing_else(tmp_path):
    settings = {**SLOW, "env_id": "CartPole-v1", "shards": 4, "eval": False, "checkpoint_every": 0}
    states = []
    for name, before, after in (("one", 1, 1), ("two", 2, 3)):
        fastac.train(run_dir=tmp_path / name, env="CartPole-v1", **rest(settings, before, 4_000))
        run = fastac.complete(fastac.resume(tmp_path / name, total_env_steps=8_000, workers=after))
        assert run.summary["workers"] == after
        states.append(fastac.load(tmp_path / name, checkpoint="last").policy.model.state_dict())
    assert_same(*map(dict, states))
    with pytest.raises(ValueError, match="workers is 5, but there are only 4 shards to divide"):
        fastac.resume(tmp_path / "one", total_env_steps=9_000, workers=5)


def rest(settings, workers, total_env_steps):
    return {k: v for k, v in settings.items() if k != "env_id"} | {
        "workers": workers,
        "total_env_steps": total_env_steps,
    }
