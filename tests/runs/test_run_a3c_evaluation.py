"""A3C's runs are evaluated beside training, in a process that may be lost like any other."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from functools import partial

import numpy as np
import pytest
from a3c_envs import EVALUATED, make_at_home, make_unplayable
from async_runs import (
    A3C,
    ENDLESS,
    are_gone,
    evaluator_of,
    finish,
    pids_of,
    start,
)
from run_support import (
    checkpoints,
    read_rows,
)

import fastac
from fastac.config import Config
from fastac.runs.checkpoint import find_checkpoint, load_checkpoint
from fastac.runs.evaluate import MOST_STEPS, Evaluation
from fastac.runs.evaluator import InProcessEvaluator, ProcessEvaluator, Request, Stage


def play(config, policy, env_steps):
    episodes = config.run.eval_episodes
    with closing(Stage(config, policy, None)) as stage:
        return stage.play(Request(env_steps, episodes, episodes, None, MOST_STEPS))


def test_the_best_checkpoint_is_what_was_evaluated(tmp_path):
    settings = {"num_envs": 8, "learning_rate": 0.005, "hidden_sizes": (32,), "eval_every": 500, "eval_episodes": 5}
    session = start(tmp_path / "run", total_env_steps=10**6, until_return=60.0, seed=1, **settings)
    summary = finish(session)
    evaluations = read_rows(tmp_path / "run" / "evaluations.jsonl")
    reached = next(k for k, row in enumerate(evaluations) if row["mean_return"] >= 60.0)
    mean_return, last = evaluations[reached]["mean_return"], evaluations[-1]
    assert summary["solved"] is True
    assert summary["eval_mean_return"] == summary["best_eval_mean_return"] == mean_return
    best = load_checkpoint(find_checkpoint(tmp_path / "run", "best"))
    assert best.env_steps == evaluations[reached]["env_steps"] == summary["solved_env_steps"]
    model = fastac.load(tmp_path / "run").policy.model
    assert play(session.config, model, best.env_steps).mean_return == mean_return
    # Workers go on while it is evaluated, so another policy is the last one.
    assert reached >= len(evaluations) - 2
    assert (last["env_steps"], last["mean_return"]) == (summary["env_steps"], summary["last_eval_mean_return"])


def test_the_policy_that_is_returned_is_the_one_that_reached_the_target(tmp_path):
    settings = {"num_envs": 8, "learning_rate": 0.005, "hidden_sizes": (32,), "normalize_obs": True}
    settings |= {"eval_every": 500, "eval_episodes": 20, "until_return": 60.0, "total_env_steps": 10**6}
    session = start(tmp_path / "run", seed=1, **settings)
    for _ in session:
        pass
    run = fastac.finish(session)
    assert run.summary["solved"] is True
    best = load_checkpoint(find_checkpoint(run.directory, "best"))
    assert best.env_steps == run.summary["solved_env_steps"] < run.summary["env_steps"]
    model = run.policy.model.state_dict()
    assert model.keys() == best.state["training"]["model"].keys()
    for name, value in model.items():
        np.testing.assert_array_equal(best.state["training"]["model"][name], value.numpy(), err_msg=name)
    last = load_checkpoint(find_checkpoint(run.directory, "last")).state["training"]["model"]
    assert any(not np.array_equal(last[name], value.numpy()) for name, value in model.items()), "nobody has gone on"
    assert play(run.config, run.policy.model, best.env_steps).mean_return == run.summary["eval_mean_return"]


@pytest.mark.parametrize("settings", [{"eval_every": 0}, {"eval": False}])
def test_without_evaluations_in_between_no_process_waits_to_play_them(tmp_path, settings):
    session = start(tmp_path / "run", total_env_steps=200, **settings)
    assert isinstance(session.evaluations._evaluator, InProcessEvaluator)
    assert (finish(session)["eval_mean_return"] is None) == ("eval" in settings)


class ToldEvaluator:
    """Finishes its first evaluation when it is waited for, with so good a result that it is the best."""

    is_concurrent = True

    def __init__(self):
        self.weights, self._returns = [], iter([9.0, 1.0, 8.0])  # of the best, the last, and the best once more

    def begin(self, model, request):
        self.weights.append(({name: np.asarray(value).copy() for name, value in model.items()}, request.env_steps))

    def take(self, wait):
        return Evaluation(np.array([next(self._returns)]), np.array([1])) if wait else None

    def close(self):
        pass


def test_the_best_is_kept_where_its_evaluation_ends_after_later_checkpoints(tmp_path, monkeypatch):
    told = ToldEvaluator()
    monkeypatch.setattr("fastac.runs.evaluations.open_evaluator", lambda *_: told)
    settings = {"eval_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1}
    session = start(tmp_path / "run", total_env_steps=ENDLESS, **settings)
    for _, _ in zip(range(6), session, strict=False):
        pass
    session.finish()
    (weights, env_steps), (_, later), (again, _) = told.weights
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    best = load_checkpoint(find_checkpoint(tmp_path / "run", "best"))
    assert env_steps < later
    assert best.env_steps == env_steps, "the best checkpoint has been deleted"
    for name, value in weights.items():
        np.testing.assert_array_equal(best.state["training"]["model"][name], value)


def test_a_killed_evaluator_is_started_again(tmp_path, caplog):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=1)
    killed, steps = evaluator_of(session), 0
    for report in session:
        if not steps:
            os.kill(killed, signal.SIGKILL)
            assert are_gone([killed])
            steps = report.env_steps
        if session.evaluations._played_at > steps:
            break
    assert evaluator_of(session) != killed
    summary = session.finish()
    assert summary["eval_mean_return"] is not None and summary["asynchrony"]["restarts"] == 0
    assert caplog.text.count("the evaluator died (exit code -9): started again") == 1


def hasten(monkeypatch):
    """Let an evaluator be given up after a second."""
    monkeypatch.setattr("fastac.runs.evaluator._SILENCE_S", 1.0)
    monkeypatch.setattr("fastac.runs.evaluator._SILENCE_TIMES", 1.0)


SILENT = "the evaluator has been silent for 1 s (raise env_timeout_s if it needs longer): started again (1 of"


@pytest.mark.usefixtures("kills_early")
def test_an_evaluator_that_hangs_is_started_again(tmp_path, monkeypatch, caplog):
    hasten(monkeypatch)
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=1)
    hung = known = None
    for _ in session:
        if hung is None and session.evaluations.latest is not None:
            hung = evaluator_of(session)
            os.kill(hung, signal.SIGSTOP)
        elif hung is not None and evaluator_of(session) != hung:
            known = known or session.evaluations.latest
            if session.evaluations.latest is not known:  # another one has been made since
                break
    assert session.finish()["asynchrony"]["restarts"] == 0
    assert SILENT in caplog.text and are_gone([hung])


@pytest.mark.usefixtures("kills_early")
def test_an_evaluator_that_hangs_while_it_is_waited_for_is_started_again(tmp_path, monkeypatch, caplog):
    hasten(monkeypatch)
    session = start(tmp_path / "run", total_env_steps=100)
    assert session.evaluations._evaluator.child.has_news(60.0), "it is not ready"
    hung = evaluator_of(session)
    os.kill(hung, signal.SIGSTOP)
    assert finish(session)["eval_mean_return"] is not None
    assert SILENT in caplog.text and are_gone([hung])


def test_an_evaluator_that_is_killed_every_time_ends_the_run(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=1, max_restarts=0)
    killed = None
    with pytest.raises(fastac.WorkerFailure, match=r"the evaluator died \(exit code -9\)"):
        for _ in session:
            if evaluator_of(session) != killed:
                killed = evaluator_of(session)
                os.kill(killed, signal.SIGKILL)
    resumed = fastac.resume(tmp_path / "run")
    assert resumed.report.env_steps > 0
    next(iter(resumed))
    resumed.finish()


def test_an_evaluation_that_fails_ends_the_run_with_a_checkpoint(tmp_path):
    settings = {"eval_every": 100, "eval_episodes": EVALUATED, "total_env_steps": ENDLESS}
    session = start(tmp_path / "run", make_unplayable, **settings)
    pids = [*pids_of(session), evaluator_of(session)]
    with pytest.raises(
        fastac.EnvFailure,
        match=r"the evaluator: .*RuntimeError: the stage collapsed.*, in the evaluation after \d+ env",
    ):
        finish(session)
    assert are_gone(pids)
    assert load_checkpoint(checkpoints(tmp_path / "run")[-1]).env_steps >= 100


def test_an_evaluator_that_cannot_begin_says_why():
    evaluator = ProcessEvaluator(Config().replace(**A3C), partial(make_at_home, os.getpid()), None)
    try:
        process = evaluator.child.process
        process.join(60.0)  # however late it is asked
        with pytest.raises(fastac.EnvFailure, match=r"the evaluator: .*RuntimeError: there is no stage here"):
            evaluator.begin({}, Request(0, 1, 1, None, MOST_STEPS))
            evaluator.take(wait=True)
    finally:
        evaluator.close()


def test_who_ends_a_run_does_not_wait_for_its_evaluation(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=1, eval_episodes=10**5)
    evaluator = evaluator_of(session)
    for _ in session:
        signal.raise_signal(signal.SIGTERM)
    summary = session.finish()
    assert summary["stopped_by"] == "SIGTERM" and summary["eval_mean_return"] is None
    assert are_gone([evaluator])
