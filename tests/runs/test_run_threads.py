"""Torch's number of threads: the run's own while fastac works, the caller's at every other moment, whatever happens."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from run_envs import make_counting_threads, make_same_step
from run_support import SMALL

import fastac
from fastac.config import Config
from fastac.contract import EnvFailure
from fastac.runs.threads import steps_on_its_threads

CALLERS = 3


@pytest.fixture(autouse=True)
def callers_threads() -> Iterator[None]:
    torch.set_num_threads(CALLERS)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """The counts while a run learned."""
    counts: list[int] = []
    learn = fastac.learning.learner.Learner.learn

    def look(*args, **kwargs):
        counts.append(torch.get_num_threads())
        return learn(*args, **kwargs)

    monkeypatch.setattr("fastac.learning.learner.Learner.learn", look)
    return counts


def start(tmp_path, name="run", **settings):
    return fastac.start("CartPole-v1", run_dir=tmp_path / name, **{**SMALL, "total_env_steps": 96, **settings})


def test_between_reports_the_count_is_the_callers(tmp_path, seen):
    session = start(tmp_path)
    for report in session:
        assert torch.get_num_threads() == (CALLERS if report.iteration == 1 else 2)
        torch.set_num_threads(2)  # which the caller may change meanwhile
    fastac.finish(session)
    assert torch.get_num_threads() == 2
    assert set(seen) == {1}


def test_two_runs_in_turn_leave_the_count_alone(tmp_path, seen):
    one, two = (start(tmp_path, name) for name in ("a", "b"))
    for _ in zip(one, two, strict=True):
        assert torch.get_num_threads() == CALLERS
    fastac.finish(one)
    assert torch.get_num_threads() == CALLERS
    fastac.finish(two)
    assert torch.get_num_threads() == CALLERS
    assert set(seen) == {1}


def test_a_caller_that_leaves_the_loop_or_raises_in_it_has_its_own_count(tmp_path):
    session = start(tmp_path)
    with pytest.raises(ZeroDivisionError):
        for _ in session:
            raise ZeroDivisionError
    assert torch.get_num_threads() == CALLERS
    for _ in session:
        break
    assert torch.get_num_threads() == CALLERS
    fastac.finish(session)
    assert torch.get_num_threads() == CALLERS


def test_a_run_that_fails_gives_the_count_back(tmp_path, monkeypatch):
    session = start(tmp_path, vectorization="native")  # compiled ones are not stepped from here
    reports = iter(session)
    next(reports)

    def fail(*_):
        raise EnvFailure("env 0 broke")

    monkeypatch.setattr(session.training.envs, "step", fail)
    with pytest.raises(EnvFailure):
        next(reports)
    assert torch.get_num_threads() == CALLERS


def test_whole_runs_and_what_follows_them_give_the_count_back(tmp_path):
    run = fastac.train(make_same_step, run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    fastac.evaluate(run, episodes=2, env=make_same_step)
    assert torch.get_num_threads() == CALLERS
    with pytest.raises(ValueError, match="already holds a run"):
        start(tmp_path)
    assert torch.get_num_threads() == CALLERS


@pytest.mark.parametrize("settings", [{}, {"workers": 2}, {"algo": "a3c"}], ids=["one", "in step", "a3c"])
def test_a_run_has_as_many_threads_as_it_is_set_to_in_every_process(tmp_path, settings):
    settings = {**SMALL, "total_env_steps": 64, "eval": False, "torch_threads": 2, "vectorization": "sync", **settings}
    run = fastac.train(make_counting_threads, run_dir=tmp_path / "run", **settings)
    assert run.config.run.torch_threads == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["torch_threads"] == 2
    assert torch.get_num_threads() == CALLERS


def test_by_default_it_is_one_thread(tmp_path):
    settings = {**SMALL, "total_env_steps": 64, "eval": False, "vectorization": "sync"}
    with pytest.raises(EnvFailure, match="expected 2 threads, found 1"):
        fastac.train(make_counting_threads, run_dir=tmp_path / "run", **settings)


def test_what_a_generator_does_at_its_end_is_on_the_runs_threads_too():
    counts = []

    class Owner:
        config = Config()

        @steps_on_its_threads
        def items(self):
            try:
                while True:
                    yield torch.get_num_threads()
            finally:
                counts.append(torch.get_num_threads())

    items = Owner().items()
    assert next(items) == 1 and torch.get_num_threads() == CALLERS
    items.close()
    assert counts == [1] and torch.get_num_threads() == CALLERS
