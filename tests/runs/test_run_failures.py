"""What goes wrong in mid-run: one sentence, an exit code, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import itertools
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from run_envs import EPISODE_STEPS, FAILING_STEP, Faulty
from run_support import SMALL, SMALL_FLAGS, checkpoints, read_rows, spawn_main
from torch import nn

import fastac
from fastac.cli import main
from fastac.runs import checkpoint
from fastac.runs.checkpoint import load_checkpoint
from fastac.runs.files import RecordError

SAVING_FLAGS = (*SMALL_FLAGS, "--checkpoint-every", "200")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raises", "env 1 raised RuntimeError: the wheel came off in step"),
        ("obs", "env 1 returned an? observation that is not finite"),
        ("reward", "env 1 returned a reward that is not finite"),
        ("shape", r"env 1 returned an observation of shape \(3,\), expected \(1,\)"),
    ],
)
def test_an_environment_that_breaks(tmp_path, capsys, monkeypatch, how, says):
    monkeypatch.setattr(Faulty, "stepped", itertools.count())
    run_dir = tmp_path / "run"
    words = ["train", f"run_envs:Faulty-{how}-v0", "--vectorization", "sync", "--workers", "1", *SAVING_FLAGS]
    assert main([*words, "--total-env-steps", "1e6", "--run-dir", str(run_dir)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *lines, _ = err.splitlines()  # what of the user's own files raised it
    assert (how == "raises") == ("the wheel came off" in "".join(lines))
    # All four environments had taken this many steps of 10-step episodes when the second broke.
    where = r"in iteration (\d+), after (\d+) environment steps"
    done = re.search(rf"fastac: {says}.* {where}; continue .* with: fastac resume {run_dir}\n", err)
    assert done, err
    assert 0 < 4 * FAILING_STEP - int(done[2]) <= 4 * 8 + 4 * EPISODE_STEPS
    last = checkpoints(run_dir)[-1]
    assert load_checkpoint(last).env_steps == int(done[2])  # the last good parameters
    assert not (run_dir / "summary.json").exists()
    # It may have been bad luck: the run can go on.
    monkeypatch.setattr(Faulty, "stepped", itertools.count(100))
    total = str(int(done[2]) + 100)
    assert main(["resume", str(run_dir), "--total-env-steps", total]) == 0
    rows = read_rows(run_dir / "progress.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))


def test_an_environment_that_breaks_at_once_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise fastac.EnvFailure("env 0 raised an error in reset")

    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL)
    monkeypatch.setattr(session.training.envs, "reset", fail)
    with pytest.raises(fastac.EnvFailure, match=r"env 0 raised an error in reset.* after 0 environment steps"):
        next(iter(session))
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_when_saving(tmp_path, capsys, monkeypatch):
    written = itertools.count(1)
    write = checkpoint.write_durably

    def fill_up(path: Path, data: bytes) -> None:
        if next(written) > 2 * 3 + 1:  # two files each
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_durably", fill_up)
    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", *SAVING_FLAGS, "--total-env-steps", "1e6", "--run-dir", str(run_dir)]
    assert main(words) == 2
    kept = checkpoints(run_dir)
    assert len(kept) == 3
    assert [load_checkpoint(path).env_steps > 0 for path in kept] == [True] * 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(f"No space left on device; the last good checkpoint, {kept[-1].name}, is kept", err)
    monkeypatch.undo()
    assert main(["resume", str(run_dir), "--total-env-steps", "1000"]) == 0


def _allow_small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_disk_that_is_full_when_logging(tmp_path):
    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", *SAVING_FLAGS, "--total-env-steps", "1e6", "--run-dir", str(run_dir)]
    process = spawn_main(words, tmp_path, _allow_small_files)
    process.join()
    assert process.exitcode == 2
    began, _, says = (tmp_path / "stderr").read_text().splitlines()
    assert began.startswith("a2c on CartPole-v1")
    assert re.search(r"fastac: cannot write .*progress.jsonl: File too large", says)
    assert load_checkpoint(checkpoints(run_dir)[-1]).env_steps > 0
    session = fastac.resume(run_dir, total_env_steps=load_checkpoint(checkpoints(run_dir)[-1]).env_steps + 1)
    assert [report.iteration for report in session] == [session.report.iteration]
    fastac.finish(session)
    rows = read_rows(run_dir / "progress.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))


def test_all_is_closed_where_the_disk_is_full(tmp_path, monkeypatch):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL)
    closed = []
    monkeypatch.setattr(session.training.envs, "close", lambda: closed.append(True))

    def full(*_):
        raise RecordError("cannot write: the disk is full.")

    monkeypatch.setattr("fastac.runs.saver.save_checkpoint", full)
    for writer in session._recorder._writers:
        monkeypatch.setattr(writer, "close", full)
    for _ in session:
        break
    with pytest.raises(RecordError):
        session.finish()
    assert closed == [True]
    monkeypatch.undo()
    session.training.envs.close()
    for writer in session._recorder._writers:
        writer.close()


def test_steps_too_large_stop_the_run(tmp_path, capsys):
    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--learning-rate", "1e30", "--max-grad-norm", "None"]
    assert main([*words, "--run-dir", str(run_dir)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    saved = re.search(r"fastac: update \d+: \w+ is .*rollouts are saved in (\S+)\.\n", err)
    assert saved, err
    state = load_checkpoint(Path(saved[1]), "CartPole-v1").state
    assert state["rollouts"]["0"]["obs"].shape == (9, 4, 4)


class Sick(nn.Module):
    """Falls ill after some calls."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 8)
        self.calls = 0

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(obs) * (torch.nan if self.calls > 50 else 1.0)


def test_a_loss_that_is_not_finite_names_update_and_term(tmp_path):
    settings = {**SMALL, "num_minibatches": 1}
    session = fastac.start(
        "CartPole-v1", run_dir=tmp_path / "run", encoder=lambda space: Sick(space.shape[0]), **settings
    )
    seen = []
    with pytest.raises(fastac.NonFiniteError, match=r"^update (\d+): policy_loss is nan, .*failure") as failed:
        seen.extend(session)
    assert str(failed.value).startswith(f"update {len(seen) + 1}: ")
    (saved,) = checkpoints(tmp_path / "run" / "failure")
    state = load_checkpoint(saved, "CartPole-v1").state
    assert all(np.isfinite(array).all() for array in state["training"]["model"].values())
    assert state["training"]["trainer"]["iteration"] == len(seen)


def test_a_failure_that_cannot_be_saved_is_still_told(tmp_path, monkeypatch):
    def full(*_):
        raise RecordError("the disk is full")

    monkeypatch.setattr("fastac.runs.saver.save_checkpoint", full)
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", encoder=lambda space: Sick(space.shape[0]), **SMALL)
    with pytest.raises(fastac.NonFiniteError, match=r"policy_loss is nan, .* could not be saved"):
        list(session)


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def bug(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("fastac.api.Session", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", "CartPole-v1", *SMALL_FLAGS, "--run-dir", str(tmp_path / "run")])
