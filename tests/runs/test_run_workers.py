"""Runs with workers, as a user meets them: what is said and saved when one is lost, and that nothing stays behind."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from run_support import SMALL, SMALL_FLAGS, checkpoints, spawn_main, wait_for

import fastac
from fastac.cli import main
from fastac.runs.checkpoint import load_checkpoint
from fastac.workers.shared_counters import ITERATIONS

TWO = [*SMALL_FLAGS, "--workers", "2", "--total-env-steps", "1e6"]


def pids_of(session):
    return session.training.others.children.pids


def test_a_run_with_workers_ends_as_any_other(tmp_path, capsys, caplog):
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--workers", "2", "--total-env-steps", "400"]
    assert main([*words, "--run-dir", str(tmp_path / "run"), "--json"]) == 0
    out, _ = capsys.readouterr()
    summary = json.loads(out)
    assert summary["workers"] == 2 and 400 <= summary["env_steps"] < 440
    assert summary["asynchrony"] is None
    assert "in each of 2 workers" in caplog.text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["workers"] == 2


def test_auto_is_written_down_as_the_number_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.build.shares.count_physical_cores", lambda: 2)
    for cost in ("_START_S", "_EXCHANGE_S"):
        monkeypatch.setattr(f"fastac.runs.worker_count.{cost}", 0.0)
    session = fastac.start("CartPole-v1", workers="auto", run_dir=tmp_path / "run", **(SMALL | {"num_envs": 256}))
    assert session.config.run.workers == session.directory.read_config().run.workers == 2
    next(iter(session))
    session.finish()


@pytest.mark.parametrize(
    ("number", "says"),
    [(signal.SIGKILL, r"worker 1 died \(exit code -9\)"), (signal.SIGSTOP, "worker 1 kept the others waiting")],
)
@pytest.mark.usefixtures("kills_early")
def test_a_lost_worker_leaves_a_checkpoint_of_that_moment(tmp_path, monkeypatch, number, says):
    session = fastac.start("CartPole-v1", workers=2, run_dir=tmp_path / "run", total_env_steps=10**6, **SMALL)
    if number == signal.SIGSTOP:
        session.training.others._timeout_s = 1.0
    pids, steps = pids_of(session), 0
    with pytest.raises(fastac.WorkerFailure, match=says):
        for report in session:
            steps = report.env_steps
            if report.iteration == 5:
                os.kill(pids[0], number)
    assert load_checkpoint(checkpoints(tmp_path / "run")[-1]).env_steps == steps
    for pid in pids:
        with pytest.raises(OSError):
            os.kill(pid, 0)
    again = fastac.resume(tmp_path / "run", total_env_steps=steps + 100)
    assert [report.env_steps for report in again][-1] >= steps + 100
    again.finish()


def test_how_long_workers_may_take_is_a_setting(tmp_path):
    settings = {**SMALL, "workers": 2, "start_timeout_s": 77.0, "env_timeout_s": 55.0}
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "a2c", **settings)
    others = session.training.others
    assert (others._start_timeout_s, others._timeout_s) == (77.0, 55.0)
    session._close()
    session = fastac.start("CartPole-v1", "a3c", run_dir=tmp_path / "a3c", **{**settings, "workers": 1})
    workers = session.training._workers
    assert workers._patience(0) == (77.0, "start_timeout_s"), "before its first iteration"
    workers._counts[0, ITERATIONS] = 1
    assert workers._patience(0) == (55.0, "env_timeout_s")
    session._close()


def test_a_checkpoint_of_that_moment_is_not_replaced_by_a_lesser_one(tmp_path):
    session = fastac.start(
        "CartPole-v1", workers=2, run_dir=tmp_path / "run", total_env_steps=10**6, checkpoint_every=1, **SMALL
    )
    with pytest.raises(fastac.WorkerFailure):
        for report in session:
            if report.iteration == 3:
                saved = checkpoints(tmp_path / "run")[-1]
                before = (saved / "state.json").read_bytes()
                os.kill(pids_of(session)[0], signal.SIGKILL)
    assert checkpoints(tmp_path / "run")[-1] == saved
    assert (saved / "state.json").read_bytes() == before


def test_workers_and_processes_of_environments_do_not_go_together(tmp_path, capsys):
    words = ["train", "Pendulum-v1", "--num-envs", "4", "--workers", "2", "--vectorization", "process"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 2
    assert "workers is 2 with vectorization process, expected one or the other" in capsys.readouterr().err


def test_the_command_line_shows_the_workers_own_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FASTAC_TEST_HOME", str(os.getpid()))
    words = [
        "train",
        "run_envs:BreaksElsewhere-v0",
        *TWO,
        "--vectorization",
        "sync",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert 'raise MemoryError("no more")' in err
    assert re.search(r"fastac: worker 1: env 2 raised MemoryError: no more.*, in iteration 1, after 0 environment", err)


def test_what_does_not_divide_is_refused_before_anything_is_written(tmp_path, capsys):
    words = ["train", "CartPole-v1", "--num-envs", "5", "--workers", "2", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 2
    assert "num_envs is 5, expected a multiple of workers, which is 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_no_worker(tmp_path):
    words = ["train", "CartPole-v1", *TWO, "--run-dir", str(tmp_path / "run")]
    run = spawn_main(words, tmp_path, os.setsid)
    progress = tmp_path / "run" / "progress.jsonl"
    wait_for(lambda: progress.exists() and progress.stat().st_size, run)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the whole group
    run.join(60.0)
    rest = (tmp_path / "stderr").read_text()
    assert run.exitcode == 130, rest
    assert "Continue with: fastac resume" in rest and "Traceback" not in rest
    until = time.monotonic() + 5.0  # the fork server sees a moment later that nobody needs it
    while left := [p for p in Path("/proc").glob("[0-9]*/stat") if _session_of(p) == run.pid]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


def _session_of(stat):
    try:
        state, _, _, session, *_ = stat.read_text().rsplit(")", 1)[1].split()
        return None if state == "Z" else int(session)
    except OSError:
        return None


@pytest.mark.parametrize(("shares", "is_long"), [([0.0, 0.5001], True), ([0.3, 0.1], False)])
def test_how_long_workers_waited_for_each_other_is_told(tmp_path, capsys, monkeypatch, shares, is_long):
    monkeypatch.setattr("fastac.workers.sync_trainer.SyncTraining.waiting", shares)
    words = ["train", "CartPole-v1", "--num-envs", "4", "--workers", "2", "--total-env-steps", "400", "--no-eval"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Waiting for other workers"))
    assert ", ".join(f"{share:.0%}" for share in shares) in line
    assert ("--workers 1" in line) == is_long
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["waiting_per_worker"] == shares
