"""Ctrl-C and SIGTERM: the update in hand is finished, the state saved, and the run can go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_support import SMALL, SMALL_FLAGS, checkpoints, last_env_steps, read_rows, spawn_main, wait_for

import fastac
from fastac.cli import main
from fastac.runs.writers import ProgressWriter


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_in_order_and_resume_goes_on(tmp_path, capsys, number, code):
    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--total-env-steps", "1e9", "--checkpoint-every", "1000"]
    process = spawn_main([*words, "--run-dir", str(run_dir), "--json"], tmp_path)
    wait_for(lambda: checkpoints(run_dir), process)
    os.kill(process.pid, number)
    process.join()

    assert process.exitcode == code
    began, _, stopping, _, _, ended = (tmp_path / "stderr").read_text().splitlines()
    assert began.startswith("a2c on CartPole-v1")
    assert stopping.startswith("stopping after the update")
    assert ended.startswith(f"Stopped by {signal.Signals(number).name} after ")
    assert ended.endswith(f"Continue with: fastac resume {run_dir}")
    summary = json.loads((tmp_path / "stdout").read_text())
    assert summary == json.loads((run_dir / "summary.json").read_text())
    assert summary["stopped_by"] == signal.Signals(number).name
    stopped_at = summary["env_steps"]
    assert checkpoints(run_dir)[-1].name == f"step-{stopped_at:012d}"

    assert main(["resume", str(run_dir), "--total-env-steps", str(stopped_at + 2000)]) == 0
    rows = read_rows(run_dir / "progress.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["env_steps"] >= stopped_at + 2000
    assert json.loads((run_dir / "summary.json").read_text())["stopped_by"] is None


def test_a_second_signal_does_not_wait(tmp_path):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=10**9)
    with pytest.raises(KeyboardInterrupt):
        for _ in session:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert session.finish()["env_steps"] > 0  # what was done is still there


def test_signals_do_what_they_did_before_a_run(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=10**9)
    for report in session:
        if report.iteration == 3:
            signal.raise_signal(signal.SIGTERM)
    assert session.stop_signal == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    run = fastac.finish(session)
    assert run.summary["stopped_by"] == "SIGTERM"
    assert run.summary["eval_mean_return"] is None  # whoever stops a run does not want to wait


def test_ctrl_c_before_training_is_no_traceback(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastac.build.sync.build_envs", interrupt)
    assert main(["train", "CartPole-v1"]) == 130
    assert capsys.readouterr().err == "fastac: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_last_evaluation_loses_nothing(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--total-env-steps", "320", "--run-dir", str(run_dir)]
    with monkeypatch.context() as patch:
        patch.setattr("fastac.runs.evaluator.evaluate", interrupt)
        assert main(words) == 130
    hint = f"continue from the last checkpoint with: fastac resume {run_dir}"
    assert capsys.readouterr().err.endswith(f"fastac: interrupted; {hint}\n")
    assert main(["resume", str(run_dir)]) == 0
    assert "greedy mean return" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_train_saves_and_raises(tmp_path, monkeypatch, number, error):
    def signal_once(self, row):
        write(self, row)
        if row["iteration"] == 3:
            signal.raise_signal(number)

    write = ProgressWriter.write
    monkeypatch.setattr(ProgressWriter, "write", signal_once)
    seeds = []
    with pytest.raises(error) as raised:
        for seed in range(10):
            seeds.append(seed)
            fastac.train("CartPole-v1", seed=seed, run_dir=tmp_path / str(seed), **SMALL, total_env_steps=10**9)
    assert seeds == [0]
    assert raised.value.args[0] == 143 if number == signal.SIGTERM else "fastac.resume(" in str(raised.value)
    loaded = fastac.load(tmp_path / "0")
    assert loaded.summary["stopped_by"] == number.name
    assert last_env_steps(tmp_path / "0") == loaded.summary["env_steps"] > 0


def test_sigterm_before_training_is_told(tmp_path, monkeypatch, capsys):
    def terminate(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastac.build.sync.build_envs", terminate)
    assert main(["train", "CartPole-v1"]) == 143
    assert capsys.readouterr().err == "fastac: terminated\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_while_workers_start_leaves_no_traceback_and_nothing_behind(tmp_path, number):
    words = ["-m", "fastac", "train", "CartPole-v1", "--workers", "2", "--num-envs", "4", "--run-dir", "run"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    run = subprocess.Popen(
        [sys.executable, *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
        cwd=tmp_path,
    )
    wait_until(lambda: is_fork_server_of(run.pid))  # begins to import
    if number == signal.SIGKILL:
        run.kill()
    else:
        os.killpg(run.pid, number)  # as a terminal does: to the whole group
    err = run.communicate(timeout=60)[1]
    assert run.returncode == (130 if number == signal.SIGINT else -9)
    assert "Traceback" not in err
    assert number == signal.SIGKILL or err.splitlines()[-1] == "fastac: interrupted"
    wait_until(lambda: not list(tmp_path.glob("pymp-*")))  # a fork server sees only after its imports that it is alone


def is_fork_server_of(pid: int) -> bool:
    """Return whether a process has started one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
