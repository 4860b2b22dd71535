"""What a session leaves open, and when it closes."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest
import torch
from run_support import SMALL, checkpoints, last_env_steps

import fastac
from fastac.runs.checkpoint import load_checkpoint

ENDLESS = {**SMALL, "total_env_steps": 10**9}


def is_gone(pid: int, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def pid_of(session: fastac.Session) -> int:
    """The process of the second worker."""
    pid = session.training.others.children[0].pid
    assert pid is not None
    return pid


def open_files(folder: Path) -> list[str]:
    """Names of the files in a folder that this process has open."""
    links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.lexists(link) and str(folder) in os.readlink(link)]


def test_a_with_block_saves_and_closes(tmp_path):
    before = torch.get_num_threads()
    with fastac.start("CartPole-v1", workers=2, run_dir=tmp_path / "run", **ENDLESS) as session:
        pid = pid_of(session)
        for report in session:
            if report.iteration == 3:
                break
        assert torch.get_num_threads() == 1 or before != 1
    assert is_gone(pid)
    assert open_files(tmp_path) == []
    assert torch.get_num_threads() == before
    assert last_env_steps(tmp_path / "run") == report.env_steps
    assert not (tmp_path / "run" / "summary.json").exists()
    session.close()  # a second time changes nothing
    with pytest.raises(ValueError, match=r"session is closed: go on with fastac\.complete\(fastac\.resume\('.*run'\)"):
        next(iter(session))
    resumed = fastac.resume(tmp_path / "run", total_env_steps=report.env_steps + 1)
    assert [r.iteration for r in resumed] == [4]
    fastac.finish(resumed)


def test_a_with_block_may_finish(tmp_path):
    with fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320) as session:
        for _ in session:
            pass
        run = fastac.finish(session)
    assert run.summary["eval_mean_return"] is not None
    assert fastac.load(tmp_path / "run").summary == run.summary


def test_a_with_block_that_nobody_iterates_leaves_no_checkpoint(tmp_path):
    with fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL):
        pass
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_in_the_callers_loop_loses_and_leaves_nothing(tmp_path, workers):
    def loop() -> None:
        session = fastac.start("CartPole-v1", workers=workers, run_dir=tmp_path / "run", **ENDLESS)
        pids.extend([pid_of(session)] if workers == 2 else [])
        for report in session:
            if report.iteration == 3:
                steps.append(report.env_steps)
                raise ZeroDivisionError

    pids: list[int] = []
    steps: list[int] = []
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        loop()
    gc.collect()
    assert all(map(is_gone, pids))
    assert open_files(tmp_path) == []
    assert torch.get_num_threads() == before
    assert last_env_steps(tmp_path / "run") == steps[0]


def test_workers_end_with_a_loop_that_was_left_and_the_run_can_be_finished(tmp_path):
    session = fastac.start("CartPole-v1", workers=2, run_dir=tmp_path / "run", **ENDLESS)
    pid = pid_of(session)
    for report in session:
        if report.iteration == 3:
            break
    assert is_gone(pid)
    left = load_checkpoint(checkpoints(tmp_path / "run")[-1]).state
    with pytest.raises(ValueError, match="its workers ended when its loop was left: finish the session, or close it"):
        next(iter(session))
    run = fastac.finish(session)
    assert run.summary["eval_mean_return"] is not None
    assert run.summary["env_steps"] == report.env_steps == last_env_steps(tmp_path / "run")
    # All of it is saved, the other worker's environments too, also after the last evaluation has marked it the best.
    finished = load_checkpoint(checkpoints(tmp_path / "run")[-1]).state
    for state in (left, finished):
        assert all(state["training"]["shards"][number]["envs"] is not None for number in "01")


def test_a3c_can_be_left_and_entered_again_and_leaves_no_process(tmp_path):
    settings = ENDLESS | {"eval_every": 10**8}
    with fastac.start("CartPole-v1", "a3c", workers=1, run_dir=tmp_path / "run", **settings) as session:
        for _ in range(2):
            for _ in session:
                break
            assert last_env_steps(tmp_path / "run") == session.report.env_steps
            assert session.training._workers.children == []
