"""Ctrl-C and SIGTERM: the update in hand is finished, the state saved, and the run can go on."""

from __future__ import annotations

import json
import os
import signal

import pytest
from run_support import SMALL, SMALL_FLAGS, checkpoints, read_rows, spawn_main, wait_for

import fastac
from fastac.cli import main


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
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    assert session.finish()["env_steps"] > 0  # what was done is still there


def test_signals_do_what_they_did_before_a_run(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=10**9)
    for report in session:
        if report.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
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
        patch.setattr("fastac.tools.evaluator.evaluate", interrupt)
        assert main(words) == 130
    hint = f"continue from the last checkpoint with: fastac resume {run_dir}"
    assert capsys.readouterr().err.endswith(f"fastac: interrupted; {hint}\n")
    assert main(["resume", str(run_dir)]) == 0
    assert "greedy mean return" in capsys.readouterr().err
