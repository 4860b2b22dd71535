"""How a run with A3C ends: signals, a killed parent, and what resuming has."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from contextlib import suppress

import numpy as np
import pytest
from async_runs import (
    ENDLESS,
    FLAGS,
    are_gone,
    below,
    find_processes,
    finish,
    no_more_than,
    pids_of,
    shared_memory,
    start,
)
from run_support import (
    SMALL,
    checkpoints,
    last_env_steps,
    read_rows,
    read_whole_rows,
    spawn,
    spawn_main,
    train_past_a_best,
    wait_for,
)

import fastac
from fastac.cli import main
from fastac.runs.checkpoint import load_checkpoint
from fastac.workers import async_workers


def resume_further(run_dir, more=2000):
    """Resume by the command line, and check that the run goes on from its checkpoint."""
    last = load_checkpoint(checkpoints(run_dir)[-1]).state["training"]["trainer"]["env_steps"]
    assert main(["resume", str(run_dir), "--total-env-steps", str(last + more)]) == 0
    rows = [row["env_steps"] for row in read_rows(run_dir / "progress.jsonl")]
    assert rows == sorted(set(rows)) and rows[-1] >= last + more


def test_nothing_outlives_a_killed_run_which_can_be_resumed(tmp_path):
    shared, run_dir = shared_memory(), tmp_path / "run"
    words = ["train", "CartPole-v1", *FLAGS, "--total-env-steps", "1e9", "--checkpoint-every", "500"]
    run = spawn_main([*words, "--run-dir", str(run_dir)], tmp_path, os.setsid)
    try:
        wait_for(lambda: checkpoints(run_dir), run)
        theirs = find_processes(lambda _, leader: leader == run.pid)
        assert len(theirs) >= 1 + 1 + 2  # itself, the fork server, two workers
    finally:
        run.kill()
        run.join()
    assert are_gone(theirs | find_processes(lambda _, leader: leader == run.pid))
    assert no_more_than(shared)
    resume_further(run_dir)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_stops_in_order_and_resume_goes_on(tmp_path, number, code):
    shared, run_dir = shared_memory(), tmp_path / "run"
    words = ["train", "CartPole-v1", *FLAGS, "--total-env-steps", "1e9", "--checkpoint-every", "500"]
    process = spawn_main([*words, "--run-dir", str(run_dir), "--json"], tmp_path)
    try:
        wait_for(lambda: checkpoints(run_dir), process)
        theirs = below(process.pid)
        assert len(theirs) >= 1 + 2  # its fork server, two workers
        os.kill(process.pid, number)
        process.join(60.0)
        assert process.exitcode == code
    finally:
        process.kill()
    assert are_gone(theirs)
    assert no_more_than(shared)
    began, *_, ended = (tmp_path / "stderr").read_text().splitlines()
    assert began.startswith("a3c on CartPole-v1")
    assert ended.startswith(f"Stopped by {signal.Signals(number).name} after ")
    assert ended.endswith(f"Continue with: fastac resume {run_dir}")
    summary = json.loads((tmp_path / "stdout").read_text())
    assert summary["stopped_by"] == signal.Signals(number).name
    assert checkpoints(run_dir)[-1].name == f"step-{summary['env_steps']:012d}"
    state = load_checkpoint(checkpoints(run_dir)[-1]).state["training"]["trainer"]
    assert state["env_steps"] == summary["env_steps"]
    resume_further(run_dir)


def test_a_second_signal_does_not_wait(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS)
    pids = pids_of(session)
    with pytest.raises(KeyboardInterrupt):
        for _ in session:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert session.finish()["env_steps"] > 0  # what was done is still there
    assert are_gone(pids)


def _lead_and_wait():
    os.setsid()
    async_workers.SILENCE_S = 6000.0  # else the worker would be given up after a while, and the first Ctrl-C would do


def test_a_second_ctrl_c_does_not_wait_for_a_worker_that_is_stopped(tmp_path):
    shared, run_dir, told = shared_memory(), tmp_path / "run", tmp_path / "stderr"
    words = ["train", "CartPole-v1", *FLAGS, "--total-env-steps", "1e9", "--checkpoint-every", "500"]
    run = spawn_main([*words, "--run-dir", str(run_dir)], tmp_path, _lead_and_wait)
    try:
        wait_for(lambda: checkpoints(run_dir), run)
        theirs = find_processes(lambda _, leader: leader == run.pid)
        workers = below(run.pid) - find_processes(lambda parent, _: parent == run.pid)
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        os.killpg(run.pid, signal.SIGINT)
        wait_for(lambda: "once more stops at once" in told.read_text(), run)
        time.sleep(1.0)  # it waits for the worker by now
        assert run.is_alive(), told.read_text()
        os.killpg(run.pid, signal.SIGINT)
        run.join(60.0)
        assert run.exitcode == 130, told.read_text()
        assert are_gone(theirs | find_processes(lambda _, leader: leader == run.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.join()
    assert no_more_than(shared)
    hint = f"fastac: interrupted; continue from the last checkpoint with: fastac resume {run_dir}"
    assert told.read_text().splitlines()[-1] == hint
    resume_further(run_dir)


# --- resuming ------------------------------------------------------------------------------------


def same(left, right, path="state"):
    if isinstance(left, dict):
        assert left.keys() == dict(right).keys(), path
        for name, value in left.items():
            same(value, right[name], f"{path}/{name}")
    elif isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, np.asarray(right), err_msg=path)
    else:
        assert left == right, path


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("rmsprop_tf", marks=pytest.mark.slow)])
def test_a_resumed_run_has_all_that_the_checkpoint_has(tmp_path, caplog, optimizer):
    settings = {"normalize_obs": True, "normalize_reward": True, "optimizer": optimizer}
    summary = finish(start(tmp_path / "run", total_env_steps=2000, **settings))
    saved = load_checkpoint(checkpoints(tmp_path / "run")[-1]).state
    session = fastac.resume(tmp_path / "run", total_env_steps=4000)
    began_anew, jumps = (record.message for record in caplog.records if record.levelno >= logging.WARNING)
    assert began_anew == "the state of the environments is not in the checkpoint: their episodes begin anew"
    assert "a schedule jumps: learning_rate 0 -> " in jumps
    same(saved["training"], session.training.get_state())
    counters = saved["training"]["trainer"]["counters"]
    assert session.training.asynchrony.updates.tolist() == summary["asynchrony"]["updates_per_worker"]
    assert counters["staleness"].sum(axis=0).tolist() == summary["asynchrony"]["staleness"]
    assert session.report.env_steps == summary["env_steps"]
    reports = list(session)
    assert reports[0].updates > summary["updates"]
    again = session.finish()
    before, after = (each["asynchrony"]["updates_per_worker"] for each in (summary, again))
    assert all(late >= early for early, late in zip(before, after, strict=True))  # one worker may do it all
    assert sum(after) == again["updates"] > sum(before)
    rows = [row["iteration"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == sorted(set(rows))


def test_a_checkpoint_of_mid_training_resumes_too(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, checkpoint_every=1)
    for _, report in zip(range(5), session, strict=False):
        steps = report.env_steps
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "run", kept)
    session.finish()
    last = load_checkpoint(checkpoints(kept)[-1])
    trainer = last.state["training"]["trainer"]
    assert last.env_steps <= trainer["env_steps"]
    again = fastac.resume(kept, total_env_steps=trainer["env_steps"] + 500)
    assert again.report.env_steps == again.training.trainer.env_steps == trainer["env_steps"] >= steps
    same(last.state["training"], again.training.get_state())
    assert finish(again)["env_steps"] >= trainer["env_steps"] + 500


def test_a_killed_run_goes_on_with_the_evaluation_of_its_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    settings = {**SMALL, "workers": 2, "eval_every": 200, "checkpoint_every": 0, "total_env_steps": ENDLESS}
    process = spawn(train_past_a_best, run_dir, **settings)
    wait_for((run_dir / "mark").exists, process)
    process.kill()
    process.join()
    saved = last_env_steps(run_dir)
    assert saved < read_whole_rows(run_dir / "progress.jsonl")[-1]["env_steps"]

    def evaluated():
        return [row["env_steps"] for row in read_rows(run_dir / "evaluations.jsonl")]

    assert saved in evaluated()
    session = fastac.resume(run_dir, total_env_steps=saved + 500)
    finish(session)
    assert saved in evaluated() and evaluated() == sorted(set(evaluated()))
    rows = [row["env_steps"] for row in read_rows(run_dir / "progress.jsonl")]
    assert rows == sorted(set(rows)) and saved in rows
