"""Evaluations: when, on whose clock, and when they end a run."""

from __future__ import annotations

import time

import pytest
from run_support import SMALL, checkpoints, read_rows

import fastac
from fastac.tools.evaluate import evaluate

PROBE = "fastac.envs.probes:fastac/ConstantReward-v0"  # every return is 1


def test_stops_at_the_first_evaluation_that_reaches_the_target(tmp_path):
    settings = {**SMALL, "num_steps": 32, "learning_rate": 0.01, "eval_every": 500, "total_env_steps": 200_000}
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", until_return=150.0, **settings)
    rows, evaluations = (read_rows(run.directory / f"{name}.jsonl") for name in ("progress", "evaluations"))
    returns = [row["mean_return"] for row in evaluations]
    assert all(value < 150.0 for value in returns[:-1])
    assert returns[-1] >= 150.0
    assert len(returns) > 1  # it learned to
    summary = run.summary
    assert summary["solved"] is True
    assert summary["until_return"] == 150.0
    assert summary["solved_env_steps"] == summary["env_steps"] == rows[-1]["env_steps"] < 200_000
    assert summary["solved_wall_s"] == summary["train_wall_s"] == rows[-1]["train_wall_s"] == evaluations[-1]["wall_s"]
    assert checkpoints(run.directory)[-1].name == f"step-{summary['env_steps']:012d}"


def test_a_run_that_misses_the_target_says_so(tmp_path):
    run = fastac.train(PROBE, run_dir=tmp_path / "run", until_return=1.5, **SMALL, total_env_steps=64)
    assert run.summary["solved"] is False
    assert run.summary["solved_wall_s"] is None
    assert run.summary["solved_env_steps"] is None


def test_the_last_evaluation_may_reach_it(tmp_path):
    run = fastac.train(PROBE, run_dir=tmp_path / "run", until_return=1.0, **SMALL, total_env_steps=64)
    assert run.summary["solved"] is True
    assert run.summary["solved_env_steps"] == run.summary["env_steps"]


def test_a_run_without_a_target_is_neither_solved_nor_not(tmp_path):
    assert fastac.train(PROBE, run_dir=tmp_path / "run", **SMALL, total_env_steps=64).summary["solved"] is None


def test_a_solved_run_is_resumed_only_towards_more(tmp_path):
    fastac.train(PROBE, run_dir=tmp_path / "run", until_return=1.0, **{**SMALL, "eval_every": 32})
    with pytest.raises(ValueError, match="its mean return of 1 has reached 1; give a larger --until-return"):
        fastac.resume(tmp_path / "run")
    session = fastac.resume(tmp_path / "run", until_return=2.0, total_env_steps=200)
    for _ in session:
        pass
    assert fastac.finish(session).summary["solved"] is False


@pytest.mark.parametrize(("least", "evaluations"), [(1.0, 4), (1.5, 1)])
def test_an_evaluation_waits_for_the_training_return_but_the_last_one(tmp_path, least, evaluations):
    settings = {**SMALL, "eval_every": 32, "total_env_steps": 128, "eval_from_return": least}
    run = fastac.train(PROBE, run_dir=tmp_path / "run", **settings)
    assert len(read_rows(run.directory / "evaluations.jsonl")) == evaluations


def test_evaluation_is_not_training_time(tmp_path, monkeypatch):
    def evaluate_slowly(*arguments):
        time.sleep(0.3)
        return evaluate(*arguments)

    monkeypatch.setattr("fastac.tools.evaluator.evaluate", evaluate_slowly)
    settings = {**SMALL, "eval_every": 64, "total_env_steps": 192}
    summary = fastac.train(PROBE, run_dir=tmp_path / "run", **settings).summary
    clock = [row["train_wall_s"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    evaluations = len(read_rows(tmp_path / "run" / "evaluations.jsonl"))
    assert evaluations >= 3
    assert summary["train_wall_s"] == clock[-1]
    assert summary["eval_wall_s"] >= 0.3 * evaluations
    assert summary["total_wall_s"] >= summary["train_wall_s"] + summary["eval_wall_s"]
    # Training took what was left at most, however slow this machine is today.
    assert summary["train_wall_s"] <= summary["total_wall_s"] - 0.3 * evaluations
    assert sum(summary["phases"].values()) == pytest.approx(summary["train_wall_s"])


def test_who_keeps_a_report_keeps_no_training_time(tmp_path):
    session = fastac.start(PROBE, run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    began = time.perf_counter()
    kept = 0
    for _ in session:
        time.sleep(0.2)
        kept += 1
    taken = time.perf_counter() - began
    assert fastac.finish(session).summary["train_wall_s"] <= taken - 0.2 * kept


def test_the_best_policy_is_the_one_that_is_loaded(tmp_path, monkeypatch):
    means = iter([1.0, 3.0, 2.0])
    settings = {**SMALL, "eval_every": 1, "total_env_steps": 1000}  # after every iteration

    def evaluate_as_told(*arguments):
        result = evaluate(*arguments)
        result.returns[:] = next(means)
        return result

    monkeypatch.setattr("fastac.tools.evaluator.evaluate", evaluate_as_told)
    weights = []
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **settings)
    for _ in session:
        weights.append([weight.detach().clone() for weight in session.parts.model.parameters()])
        if len(weights) == 3:
            break
    fastac.finish(session)
    loaded = fastac.load(tmp_path / "run").policy.model.parameters()
    assert all(bool((a == b).all()) for a, b in zip(loaded, weights[1], strict=True))
