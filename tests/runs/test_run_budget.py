"""A budget in minutes: what counts, that steps may be spent first, and how such a run is resumed."""

from __future__ import annotations

import json
import signal

import pytest
from run_support import SMALL, SMALL_FLAGS, last_env_steps, read_records, read_rows, read_state, train_until_killed

import fastac
from fastac.build import assemble
from fastac.cli import main
from fastac.runs.evaluate import evaluate

PROBE = "probes:fastac/ConstantReward-v0"
NO_TIME = 1e-9  # minutes, less than any machine needs for anything
ENDLESS = 10**9
MINUTE_S = 60.0


class Clock:
    """Stands until somebody moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("api", "runs.saver", "runs.evaluations"):
        monkeypatch.setattr(f"fastac.{module}.perf_counter", clock)
    return clock


def exit_with_parent(session, clock, minutes=1.0):
    """Let every report take so long; return the session's iterations and its summary."""
    reports = []
    for report in session:
        clock.now_s += minutes * MINUTE_S
        reports.append(report.iteration)
    return reports, fastac.finish(session).summary


# --- what counts ---------------------------------------------------------------------------------


def test_it_ends_after_the_report_that_is_late(tmp_path, clock):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, budget_minutes=10.0)
    reports, summary = exit_with_parent(session, clock)
    assert reports == list(range(1, 11))
    assert (summary["ended_by"], summary["stopped_by"]) == ("minutes", None)
    assert summary["total_wall_s"] == 10 * MINUTE_S
    assert summary["eval_mean_return"] is not None
    assert last_env_steps(tmp_path / "run") == summary["env_steps"]


def test_start_up_counts(tmp_path, clock, monkeypatch):
    def assemble_slowly(*arguments):
        clock.now_s += 7 * MINUTE_S
        return assemble(*arguments)

    monkeypatch.setattr("fastac.api.assemble", assemble_slowly)
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, budget_minutes=10.0)
    reports, summary = exit_with_parent(session, clock)
    assert reports == [1, 2, 3]
    assert summary["total_wall_s"] == 10 * MINUTE_S


def test_evaluations_on_the_way_count_and_the_last_one_does_not(tmp_path, clock, monkeypatch):
    def evaluate_slowly(*arguments):
        clock.now_s += 4 * MINUTE_S
        result = evaluate(*arguments)
        result.returns[:] = clock.now_s  # ever better, so that nothing older is played once more
        return result

    monkeypatch.setattr("fastac.runs.evaluator.evaluate", evaluate_slowly)
    settings = {**SMALL, "eval_every": 1, "budget_minutes": 12.0}  # after every iteration
    reports, summary = exit_with_parent(fastac.start("CartPole-v1", run_dir=tmp_path / "run", **settings), clock)
    assert reports == [1, 2, 3]  # after 5, 10 and 15 minutes
    assert len(read_rows(tmp_path / "run" / "evaluations.jsonl")) == 3  # the last one is that of the end
    assert summary["total_wall_s"] == 15 * MINUTE_S

    settings["eval_every"] = 0
    reports, summary = exit_with_parent(fastac.start("CartPole-v1", run_dir=tmp_path / "again", **settings), clock)
    assert len(reports) == 12
    assert summary["total_wall_s"] == 16 * MINUTE_S


ALGOS = {
    "a2c": (),
    "a2c, 2 workers": ("--workers", "2"),
    "ppo": ("--algo", "ppo", "--num-minibatches", "2"),
    "reinforce": ("--algo", "reinforce"),
    "a3c": ("--algo", "a3c", "--workers", "1"),
    "a3c, 2 workers": ("--algo", "a3c", "--workers", "2"),
}


@pytest.mark.parametrize("flags", ALGOS.values(), ids=ALGOS.keys())
def test_every_algorithm_ends_as_if_its_steps_were_spent(tmp_path, capsys, flags):
    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", *SMALL_FLAGS, *flags, "--total-env-steps", "1e9", "--budget-minutes", "1e-9"]
    assert main([*words, "--run-dir", str(run_dir), "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary == json.loads((run_dir / "summary.json").read_text())
    assert (summary["ended_by"], summary["stopped_by"]) == ("minutes", None)
    assert summary["eval_mean_return"] is not None
    assert 0 < summary["env_steps"] < ENDLESS
    assert last_env_steps(run_dir) == summary["env_steps"]
    ended = err.splitlines()[-1]
    assert ended.startswith("Trained on CartPole-v1: greedy mean return ")
    assert ended.endswith(f"steps/s), when its 1e-09 minutes were over. Everything is in {run_dir}")
    if "a3c" not in flags:
        assert [row["iteration"] for row in read_rows(run_dir / "progress.jsonl")] == [1]


@pytest.mark.parametrize("minutes", ["1e9", "1e-9"])
def test_steps_may_be_spent_first(tmp_path, capsys, minutes):
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--total-env-steps", "8", "--budget-minutes", minutes, "--json"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0  # one iteration
    out, err = capsys.readouterr()
    assert json.loads(out)["ended_by"] == "env_steps"
    assert "minutes were over" not in err


def test_other_ends_are_named_too(tmp_path):
    settings = {**SMALL, "budget_minutes": 1e9, "total_env_steps": ENDLESS}
    run = fastac.train(PROBE, run_dir=tmp_path / "solved", **{**settings, "eval_every": 32}, until_return=1.0)
    assert run.summary["ended_by"] == "until_return"

    session = fastac.start(PROBE, run_dir=tmp_path / "stopped", **settings)
    for _ in session:
        signal.raise_signal(signal.SIGTERM)
    assert (session.finish()["ended_by"], session.finish()["stopped_by"]) == ("signal", "SIGTERM")

    session = fastac.start(PROBE, run_dir=tmp_path / "left", **settings)
    for _ in session:
        break
    assert session.finish()["ended_by"] is None


# --- resuming ------------------------------------------------------------------------------------


def test_a_resumed_run_has_spent_what_it_had_spent(tmp_path, clock):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, budget_minutes=4.0)
    assert exit_with_parent(session, clock)[0] == [1, 2, 3, 4]
    clock.now_s += 100 * MINUTE_S  # nobody's
    session = fastac.resume(tmp_path / "run", budget_minutes=10.0)
    reports, summary = exit_with_parent(session, clock)
    assert reports == [5, 6, 7, 8, 9, 10]
    assert session.config.run.budget_minutes == 10.0
    assert summary["ended_by"] == "minutes"
    assert summary["total_wall_s"] == 10 * MINUTE_S


def test_a_run_whose_minutes_are_over_is_complete(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**SMALL, "total_env_steps": 96}
    fastac.train("CartPole-v1", run_dir="run", **settings, budget_minutes=NO_TIME)
    for words in ((), ("--total-env-steps", "1e6"), ("--budget-minutes", "2e-9")):
        assert main(["resume", "run", *words]) == 2
        assert "minutes; give a larger --budget-minutes to go on" in capsys.readouterr().err
    assert main(["resume", "run", "--budget-minutes", "-1"]) == 2
    assert "budget_minutes is -1.0, expected above 0" in capsys.readouterr().err
    assert main(["resume", "run", "--budget-minutes", "1e9", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["ended_by"] == "env_steps" and summary["env_steps"] >= 96


def test_a_checkpoint_from_before_its_minutes_were_over_does_not_pass_for_more(tmp_path, clock):
    settings = {**SMALL, "checkpoint_every": 1, "eval_every": 1, "budget_minutes": 1.0}
    assert exit_with_parent(fastac.start("CartPole-v1", run_dir=tmp_path / "run", **settings), clock)[0] == [1]
    with pytest.raises(ValueError, match=r"it has taken 1\.00 of 1 minutes"):
        fastac.resume(tmp_path / "run")


def test_what_an_interrupt_of_the_last_evaluation_left_out_is_done_by_resume(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, budget_minutes=NO_TIME)
    (report,) = session
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fastac.runs.evaluator.evaluate", interrupt)
        session.finish()
    session = fastac.resume(tmp_path / "run")
    assert list(session) == []
    summary = fastac.finish(session).summary
    assert (summary["ended_by"], summary["env_steps"]) == ("minutes", report.env_steps)
    assert summary["eval_mean_return"] is not None


def test_killed_and_resumed_is_the_same_run_where_minutes_do_not_end_it(tmp_path):
    linear = {"learning_rate_schedule": "linear", "ent_coef_schedule": "linear"}  # by steps, whatever the minutes
    settings = {**SMALL, **linear, "total_env_steps": 640, "checkpoint_every": 96, "eval_every": 64}
    fastac.train("CartPole-v1", run_dir=tmp_path / "whole", **settings, budget_minutes=1e6)
    train_until_killed("CartPole-v1", tmp_path / "killed", 10, **settings, budget_minutes=1e6)
    session = fastac.resume(tmp_path / "killed")
    for _ in session:
        pass
    fastac.finish(session)
    assert read_state(tmp_path / "killed") == read_state(tmp_path / "whole")
    assert read_records(tmp_path / "killed") == read_records(tmp_path / "whole")
