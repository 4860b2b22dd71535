"""A3C's workers wait while their policy is evaluated, and may be lost meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from a3c_envs import EVALUATED, make_unplayable
from async_runs import ENDLESS, are_gone, finish, forked, pids_of, start
from run_support import checkpoints, read_rows

import fastac
from fastac.runs.checkpoint import find_checkpoint, load_checkpoint
from fastac.runs.evaluate import MOST_STEPS
from fastac.runs.evaluator import Request, Stage
from fastac.workers import async_workers
from fastac.workers.shared_counters import ITERATIONS

SOLVED = {"num_envs": 8, "learning_rate": 0.005, "hidden_sizes": (32,), "normalize_obs": True}
SOLVED |= {"eval_every": 500, "eval_episodes": 20, "until_return": 60.0, "total_env_steps": 10**6}


def play(config, policy, env_steps):
    episodes = config.run.eval_episodes
    with closing(Stage(config, policy, None)) as stage:
        return stage.play(Request(env_steps, episodes, episodes, None, MOST_STEPS))


def iterations(session):
    return session.training._counters.counts.view()[:, ITERATIONS].tolist()


def watch(monkeypatch, during):
    """Call `during` in every evaluation, and let the evaluation go on."""
    whole = Stage.play

    def play(stage, request, tell=None):
        during()
        return whole(stage, request, tell)

    monkeypatch.setattr(Stage, "play", play)


def test_the_policy_that_reached_the_target_is_what_was_evaluated_and_what_is_returned(tmp_path):
    session = start(tmp_path / "run", seed=1, **SOLVED)
    for _ in session:
        pass
    run = fastac.finish(session)
    assert run.summary["solved"] is True
    *_, reached = read_rows(tmp_path / "run" / "evaluations.jsonl")
    best = load_checkpoint(find_checkpoint(run.directory, "best"))
    assert best.env_steps == reached["env_steps"] == run.summary["solved_env_steps"] == run.summary["env_steps"]
    assert run.summary["eval_mean_return"] == run.summary["last_eval_mean_return"] == reached["mean_return"] >= 60.0
    model = run.policy.model.state_dict()
    assert model.keys() == best.state["training"]["model"].keys()
    for name, value in model.items():
        np.testing.assert_array_equal(best.state["training"]["model"][name], value.numpy(), err_msg=name)
    assert play(run.config, run.policy.model, best.env_steps).mean_return == reached["mean_return"]


def test_workers_wait_during_an_evaluation_which_is_no_training_time(tmp_path, monkeypatch):
    moved, spent_s = [], 0.3

    def during():
        before = iterations(session)
        time.sleep(spent_s)
        moved.append((before, iterations(session)))

    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=500, eval_episodes=1)
    watch(monkeypatch, during)
    began = time.monotonic()
    for _ in session:
        if len(moved) == 3:
            break
    wall_s = time.monotonic() - began
    assert all(before == after for before, after in moved)
    assert moved[0][0] != moved[1][0] != moved[2][0], "they have not gone on"
    assert session.report.train_wall_s < wall_s - 3 * spent_s
    session.finish()


def test_the_report_that_is_evaluated_counts_what_workers_did_before_they_waited(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=300, eval_episodes=1)
    evaluations = session.evaluations
    for _ in session:
        if evaluations.latest is not None and evaluations._played_at == session.report.env_steps:
            counted = session.training.get_state()["trainer"]["env_steps"]
            assert counted == session.report.env_steps
            break
    session.finish()
    rows = [row["env_steps"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == sorted(set(rows)) and rows[-1] == session.report.env_steps


def test_nobody_but_the_workers_is_started(tmp_path, monkeypatch):
    before, seen = forked(), []
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=200, eval_episodes=1)
    watch(monkeypatch, lambda: seen.append(forked() - before == set(pids_of(session))))
    for _ in session:
        if len(seen) > 1:
            break
    session.finish()
    assert all(seen)


def test_a_worker_that_dies_while_it_waits_is_replaced(tmp_path, monkeypatch, caplog):
    killed = []

    def during():
        if not killed:
            killed.append(pids_of(session)[0])
            os.kill(killed[0], signal.SIGKILL)
            assert are_gone(killed)

    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=500, eval_episodes=1)
    watch(monkeypatch, during)
    steps = None
    for report in session:
        if killed and steps is None:
            steps = report.env_steps
        if steps is not None and report.env_steps > steps + 2000 and killed[0] not in pids_of(session):
            break
    assert session.finish()["asynchrony"]["restarts"] == 1
    assert caplog.text.count("died (exit code -9): started again with new episodes") == 1


def stop_worker(session):
    pid = pids_of(session)[1]
    os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.usefixtures("kills_early")
def test_a_worker_that_hangs_instead_of_waiting_is_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(async_workers, "SILENCE_S", 1.0)
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=20_000, eval_episodes=1)
    hung = known = None
    for _ in session:
        if hung is None:
            hung, known = stop_worker(session), session.evaluations.latest
        elif session.evaluations.latest is not known:
            break
    assert session.finish()["asynchrony"]["restarts"] == 1
    assert "worker 1 finished no step" in caplog.text and are_gone([hung])


@pytest.mark.usefixtures("kills_early")
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_worker_that_is_stopped_while_it_waits_is_given_up(tmp_path, monkeypatch, caplog, goes_on):
    monkeypatch.setattr(async_workers, "SILENCE_S", 1.0)
    hung = []
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=500, eval_episodes=1)
    watch(monkeypatch, lambda: hung or hung.append(stop_worker(session)))
    for _ in session:
        if hung and (not goes_on or hung[0] not in pids_of(session)):
            break
    summary = session.finish()
    assert session.ended_by is None
    assert summary["asynchrony"]["restarts"] == int(goes_on)
    assert "worker 1 finished no step" in caplog.text and are_gone(hung)


def test_an_evaluation_that_fails_ends_the_run_with_a_checkpoint(tmp_path):
    settings = {"eval_every": 100, "eval_episodes": EVALUATED, "total_env_steps": ENDLESS}
    session = start(tmp_path / "run", make_unplayable, **settings)
    pids = pids_of(session)
    match = r"RuntimeError: the stage collapsed.*, in the evaluation after \d+ env"
    with pytest.raises(fastac.EnvFailure, match=match):
        finish(session)
    assert are_gone(pids)
    assert load_checkpoint(checkpoints(tmp_path / "run")[-1]).env_steps >= 100


def test_who_ends_a_run_does_not_wait_for_its_evaluation(tmp_path):
    endless = {"total_env_steps": ENDLESS, "eval_every": 1, "eval_episodes": 10**6, "vectorization": "sync"}
    session = start(tmp_path / "run", **endless)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    for _ in session:
        pass
    summary = session.finish()
    timer.join()
    assert summary["stopped_by"] == "SIGTERM" and summary["eval_mean_return"] is None
