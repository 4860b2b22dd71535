"""Runs with A3C, as a user meets them: what they write, what they survive, and that nothing stays behind."""

from __future__ import annotations

import json
import multiprocessing.forkserver
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from a3c_envs import make_at_home, make_mishap, make_opaque
from async_runs import (
    ENDLESS,
    FLAGS,
    are_gone,
    finish,
    forked,
    pids_of,
    start,
)
from run_support import (
    checkpoints,
    read_rows,
)

import fastac
from fastac.cli import main
from fastac.runs.checkpoint import load_checkpoint
from fastac.workers import async_workers

# --- what a run is -------------------------------------------------------------------------------


def test_a_run_leaves_what_one_of_a2c_leaves(tmp_path, capsys):
    settings = ("--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "8", "--eval-episodes", "2")
    for algo, more in (("a2c", ()), ("a3c", ("--workers", "2", "--lock"))):
        words = ["train", "CartPole-v1", "--algo", algo, *more, *settings, "--total-env-steps", "3000"]
        evaluated = ("--eval-every", "1000", "--checkpoint-every", "1000")
        assert main([*words, *evaluated, "--run-dir", str(tmp_path / algo), "--json"]) == 0
    a2c, a3c = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert a2c.keys() == a3c.keys()
    names = [{path.name.split(".")[0] for path in (tmp_path / algo).iterdir()} for algo in ("a2c", "a3c")]
    assert names[0] == names[1]
    assert list((tmp_path / "a3c" / "tb").iterdir())
    assert a2c["asynchrony"] is None
    measured = a3c["asynchrony"]
    assert sum(measured["staleness"]) == sum(measured["updates_per_worker"]) == a3c["updates"]
    assert len(measured["updates_per_worker"]) == 2 and measured["restarts"] == 0
    lags = np.arange(len(measured["staleness"]))
    if measured["max_staleness"] < lags[-1]:  # which counts all beyond it too, where one worker had to wait for long
        assert measured["mean_staleness"] == pytest.approx(lags @ measured["staleness"] / a3c["updates"])
        assert measured["max_staleness"] == max(lag for lag in lags if measured["staleness"][lag])
    assert 3000 <= a3c["env_steps"] < 3000 + 2 * 8 * 2
    rows = read_rows(tmp_path / "a3c" / "progress.jsonl")
    for counter in ("iteration", "env_steps", "train_wall_s"):
        values = [row[counter] for row in rows]
        assert values == sorted(set(values)), counter
    assert rows[0]["iteration"] > 0
    assert rows[-1]["env_steps"] == a3c["env_steps"]
    assert sum(a3c["phases"].values()) == pytest.approx(a3c["train_wall_s"])
    evaluated = [row["env_steps"] for row in read_rows(tmp_path / "a3c" / "evaluations.jsonl")]
    assert evaluated == sorted(set(evaluated)) and evaluated[-1] == a3c["env_steps"]


def test_environments_per_worker_make_the_number_of_all(tmp_path):
    words = ["train", "CartPole-v1", *FLAGS[:4], "--envs-per-worker", "3", *FLAGS[6:], "--total-env-steps", "100"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["env"]["num_envs"], config["env"]["envs_per_worker"]) == (6, 3)


@pytest.mark.parametrize("flags", [("CartPole-v1", "--workers", "auto"), ("Acrobot-v1",)], ids=["asked", "by default"])
def test_as_many_workers_as_divide_the_environments(tmp_path, monkeypatch, flags):
    monkeypatch.setattr("fastac.build.shares.count_physical_cores", lambda: 3)
    words = ["train", *flags, "--algo", "a3c", "--num-envs", "64", *FLAGS[6:], "--total-env-steps", "2000"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["env"]["num_envs"], config["run"]["workers"]) == (64, 2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["asynchrony"]["updates_per_worker"]) == 2


def test_efficiency_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastac.runs.session._LEAST_TRAIN_S", 0.0)
    words = ["train", "CartPole-v1", *FLAGS, "--total-env-steps", "4000", "--run-dir", str(tmp_path / "run"), "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["efficiency"] > 0.0 and "Efficiency" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--device", "cuda"), "device is 'cuda' with algo a3c, expected 'cpu': its workers share parameters in the"),
        (("--vectorization", "process"), "vectorization process, expected one or the other"),
        (("--num-envs", "5"), "num_envs is 5, expected a multiple of workers, which is 2"),
        (("--max-restarts", "-1"), "max_restarts is -1, expected at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, capsys, flags, says):
    assert main(["train", "CartPole-v1", *FLAGS, *flags, "--run-dir", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_for_a3c(tmp_path, capsys):
    assert main(["train", "CartPole-v1", "--algo", "a2c", "--lock", "--run-dir", str(tmp_path / "run")]) == 2
    assert "lock is True with algo a2c, expected False" in capsys.readouterr().err


# --- a worker is lost ----------------------------------------------------------------------------


def test_a_killed_worker_is_named_and_the_run_reaches_its_budget(tmp_path, caplog):
    session = start(tmp_path / "run", total_env_steps=ENDLESS)
    lost, steps = pids_of(session)[1], 0
    for report in session:
        if not steps:
            os.kill(lost, signal.SIGKILL)
        steps = report.env_steps
        if session.training.asynchrony.restarts:
            break
    fastac.finish(session)
    assert "worker 1 died (exit code -9): started again with new episodes" in caplog.text
    assert session.finish()["asynchrony"]["restarts"] == 1

    again = fastac.resume(tmp_path / "run", total_env_steps=session.report.env_steps + 500)
    summary = finish(again)
    assert summary["env_steps"] >= session.report.env_steps + 500
    assert summary["asynchrony"]["restarts"] == 1  # of the whole run


def marks_of(tmp_path):
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def test_an_environment_that_raises_once_costs_its_worker_a_restart(tmp_path, caplog):
    factory = partial(make_mishap, "raises", os.getpid(), marks_of(tmp_path))
    session, steps = start(tmp_path / "run", factory, total_env_steps=ENDLESS), None
    for report in session:
        if session.training.asynchrony.restarts:
            steps = steps or report.env_steps
        if steps and report.env_steps > steps + 1000:
            break
    assert session.finish()["asynchrony"]["restarts"] == 1
    (told,) = [r.getMessage() for r in caplog.records if "started again" in r.getMessage()]
    assert re.match(r"worker [01]: .*RuntimeError: the wheel came off", told)
    rows = [row["env_steps"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == sorted(set(rows))


@pytest.mark.usefixtures("kills_early")
def test_an_environment_that_hangs_costs_its_worker_a_restart(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(async_workers, "SILENCE_S", 4.0)  # longer than a busy machine keeps the other one waiting
    monkeypatch.setattr(async_workers, "SILENCE_ITERATIONS", 1.0)
    factory = partial(make_mishap, "hangs", os.getpid(), marks_of(tmp_path))
    session = start(tmp_path / "run", factory, total_env_steps=ENDLESS)
    before, done = pids_of(session), None
    for _ in session:
        updates = session.training.asynchrony.updates
        if session.training.asynchrony.restarts and done is None:
            done = updates
        if done is not None and (updates > done).all():  # both work again
            break
    assert session.finish()["asynchrony"]["restarts"] == 1
    assert re.search(r"worker [01] finished no step for [\d.]+ s \(.*\): started again with new episodes", caplog.text)
    assert are_gone(before)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_one_restart_too_many_ends_the_run_with_a_checkpoint(tmp_path, workers):
    factory = partial(make_mishap, "raises", os.getpid(), None)
    session = start(tmp_path / "run", factory, workers=workers, total_env_steps=10**6, max_restarts=1)
    with pytest.raises(fastac.EnvFailure, match=r"worker \d: .*the wheel came off.*as max_restarts allows \(1\)"):
        finish(session)
    last = load_checkpoint(checkpoints(tmp_path / "run")[-1])
    assert last.env_steps == last.state["training"]["trainer"]["env_steps"] > 0
    assert not (tmp_path / "run" / "summary.json").exists()
    again = fastac.resume(tmp_path / "run", env=make_opaque, total_env_steps=last.env_steps + 500)
    summary = finish(again)
    assert summary["env_steps"] >= last.env_steps + 500
    assert summary["asynchrony"]["restarts"] == 1
    rows = [row["env_steps"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == sorted(set(rows))


def test_the_last_checkpoint_of_a_run_that_lost_its_workers_is_of_all_that_was_done(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, max_restarts=0)
    lost = pids_of(session)[1]
    with pytest.raises(fastac.WorkerFailure, match=r"worker 1 died \(exit code -9\)"):
        for report in session:
            if report.env_steps > 1000 and lost:
                os.kill(lost, signal.SIGKILL)
                lost = None
    last = load_checkpoint(checkpoints(tmp_path / "run")[-1])
    assert last.env_steps == last.state["training"]["trainer"]["env_steps"] == session.training.trainer.env_steps
    assert read_rows(tmp_path / "run" / "progress.jsonl")[-1]["env_steps"] == last.env_steps


def test_the_command_line_shows_the_workers_own_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FASTAC_TEST_HOME", str(os.getpid()))
    words = ["train", "run_envs:BreaksElsewhere-v0", *FLAGS, "--max-restarts", "1", "--total-env-steps", "1e6"]
    before = forked()
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 2  # as with workers in step
    err = capsys.readouterr().err
    assert 'raise MemoryError("no more")' in err
    assert re.search(r"fastac: worker \d: env 0 raised MemoryError: no more", err.splitlines()[-1]), err
    assert are_gone(forked() - before)


def test_steps_too_large_stop_the_run(tmp_path, capsys):
    words = ["train", "CartPole-v1", *FLAGS, "--learning-rate", "1e30", "--max-grad-norm", "None"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    saved = re.search(r"fastac: worker \d: update \d+: \w+ is .*; the state is saved in (\S+)\.\n", err)
    assert saved, err
    load_checkpoint(Path(saved[1]), "CartPole-v1")


# --- start-up ------------------------------------------------------------------------------------


def test_a_worker_that_cannot_begin_leaves_neither_process_nor_directory(tmp_path):
    finish(start(tmp_path / "first", total_env_steps=64))  # so that there is a fork server
    before = forked()
    with pytest.raises(fastac.EnvFailure, match=r"worker \d: .*RuntimeError: there is no stage here"):
        start(tmp_path / "run", partial(make_at_home, os.getpid()))
    assert are_gone(forked() - before)
    assert not (tmp_path / "run").exists()


def test_functions_that_cannot_be_sent_are_refused(tmp_path):
    def build(space):
        return torch.nn.Linear(space.shape[0], 8)

    for arguments in ({"env": lambda num: make_opaque(num)}, {"encoder": build}):
        with pytest.raises(
            ValueError, match="the env and encoder functions are sent to other processes, so they must be defined"
        ):
            start(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
    assert multiprocessing.active_children() == []


def run_script(tmp_path, lines):
    script = tmp_path / "script.py"
    script.write_text("import fastac\n" + lines)
    command = [sys.executable, str(script)]
    with (tmp_path / "output").open("w") as output:
        code = subprocess.run(command, timeout=120, stdout=output, stderr=output, cwd=tmp_path).returncode
    return code, (tmp_path / "output").read_text()


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path):
    code, output = run_script(
        tmp_path,
        "def make(num_envs):\n"
        "    import gymnasium\n"
        "    return gymnasium.make_vec('CartPole-v1', num_envs=num_envs)\n"
        "fastac.train(make, 'a3c', workers=1, num_envs=2, run_dir='run', total_env_steps=100)\n",
    )
    assert code == 1
    assert "below `if __name__ == '__main__':`" in output.splitlines()[-1]


def test_sessions_that_nobody_finishes_let_python_exit(tmp_path):
    code, output = run_script(
        tmp_path,
        "if __name__ == '__main__':\n"
        "    reports = []\n"
        "    for algo in ('a2c', 'a3c'):\n"
        "        session = fastac.start('CartPole-v1', algo, workers=2, num_envs=4, run_dir=algo)\n"
        "        reports.append(iter(session))\n"
        "        next(reports[-1])\n",
    )
    assert (code, output) == (0, "")
