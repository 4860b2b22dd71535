"""JSON lines: what rows hold, when they reach the file, and what a resumed run keeps."""

from __future__ import annotations

import errno
import io
import math
import os
from pathlib import Path

import pytest
from report_support import LOSSES, Clock, make_report, read_lines, row

from fastac.config import Config
from fastac.contract import Episode
from fastac.runs.files import RecordError
from fastac.runs.tracker import ReturnTracker
from fastac.runs.writers import EvaluationRow, ProgressWriter, TensorBoardWriter, progress_row


def test_row_and_lines(tmp_path: Path) -> None:
    tracker, writer = ReturnTracker(), ProgressWriter(tmp_path / "progress.jsonl")
    for report in (make_report(1), make_report(2, (Episode(7.0, 9),))):
        tracker.update(report)
        writer.write(progress_row(report, tracker))
    writer.close()
    writer.close()
    first, second = read_lines(tmp_path / "progress.jsonl")
    assert (first["mean_return"], first["mean_length"], first["explained_variance"]) == (None, None, None)
    assert second == {
        "iteration": 2,
        "env_steps": 200,
        "frames": 800,
        "updates": 4,
        "episodes": 6,
        "train_wall_s": 1.0,
        "sps": 200.0,
        "sps_window": 200.0,
        "mean_return": 7.0,
        "mean_length": 9.0,
        **LOSSES,
        "explained_variance": None,
    }


def test_lines_reach_the_file_every_second_and_at_flush_and_evaluations_at_once(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "progress.jsonl"
    writer = ProgressWriter(path, clock=clock)
    writer.write(row(1))
    assert read_lines(path) == []
    clock.now += 1.0
    writer.write(row(2))
    assert len(read_lines(path)) == 2
    writer.write(row(3))
    assert len(read_lines(path)) == 2
    writer.flush()
    assert len(read_lines(path)) == 3
    writer.write_evaluation(EvaluationRow(300, 9.5, math.inf, 20.0, 0.1, 10))
    assert read_lines(tmp_path / "evaluations.jsonl") == [
        {"env_steps": 300, "mean_return": 9.5, "std": None, "mean_length": 20.0, "wall_s": 0.1, "episodes": 10}
    ]
    writer.close()


@pytest.mark.parametrize("tail", [b"", b'{"iteration": 9, "env_', b'{"iteration": 4, "env_steps": 400}', b"\xff\n{}\n"])
def test_resume_has_each_iteration_once(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "progress.jsonl"
    writer = ProgressWriter(path)
    for k in range(1, 4 if tail.startswith(b'{"iteration": 4') else 9):
        writer.write(row(k))
    for steps in (200, 300, 700):
        writer.write_evaluation(EvaluationRow(steps, 1.0, 0.0, 1.0, 0.0, 10))
    writer.close()
    with path.open("ab") as file:
        file.write(tail)
    resumed = ProgressWriter(path, resume_at=(3, 300))
    resumed.write(row(4))
    resumed.close()
    assert [line["iteration"] for line in read_lines(path)] == [1, 2, 3, 4]
    assert [line["env_steps"] for line in read_lines(tmp_path / "evaluations.jsonl")] == [200, 300]


def test_resume_without_files_begins_them_and_a_new_run_empties_them(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    for resume_at in ((5, 500), None):
        writer = ProgressWriter(path, resume_at)
        writer.write(row(6))
        writer.close()
        assert [line["iteration"] for line in read_lines(path)] == [6]


def test_resume_from_between_two_rows_keeps_what_was_evaluated_there(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    writer = ProgressWriter(path)
    for k in (2, 4):
        writer.write(row(k))
    for steps in (200, 317, 318):
        writer.write_evaluation(EvaluationRow(steps, 1.0, 0.0, 1.0, 0.0, 10))
    writer.close()
    ProgressWriter(path, resume_at=(3, 317)).close()
    assert [line["iteration"] for line in read_lines(path)] == [2]
    assert [line["env_steps"] for line in read_lines(tmp_path / "evaluations.jsonl")] == [200, 317]


def test_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = ProgressWriter(tmp_path / "progress.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_rows", Full())
        with pytest.raises(RecordError, match=r"^cannot write .*progress.jsonl: No space left on device\.$"):
            writer.write(row(1))
    writer.close()
    with pytest.raises(RecordError, match="No such file"):
        ProgressWriter(tmp_path / "missing" / "progress.jsonl")
    with pytest.raises(RecordError, match="Not a directory"):
        TensorBoardWriter(tmp_path / "progress.jsonl" / "tb", Config())
