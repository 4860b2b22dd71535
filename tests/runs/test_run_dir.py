"""Run directories and provenance."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastac.config import Config
from fastac.runs import provenance
from fastac.runs.checkpoint import best_mean_return, save_checkpoint
from fastac.runs.files import RecordError, replace_json
from fastac.runs.provenance import git_commit, peak_rss_mb, versions
from fastac.runs.run_dir import RunDirectory
from fastac.runs.writers import ProgressWriter


def test_create_writes_the_config_and_open_finds_it(tmp_path: Path) -> None:
    config = Config().replace(seed=3, hidden_sizes=(8,), until_return=475.0)
    created = RunDirectory.create(tmp_path / "a" / "b", config)
    assert sorted(path.name for path in created.path.iterdir()) == ["checkpoints", "config.json"]
    assert RunDirectory.open(created.path) == created
    assert RunDirectory.open(created.path).read_config() == config
    assert created.progress_path.parent == created.tensorboard_path.parent == created.path


def test_create_takes_an_empty_directory_and_refuses_a_run(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, Config())
    with pytest.raises(ValueError, match=r"already holds a run: choose another run directory, or .*fastac resume /"):
        RunDirectory.create(tmp_path, Config())
    (tmp_path / "b").mkdir()
    save_checkpoint(tmp_path / "b", 1, {"x": np.ones(1)}, Config())
    with pytest.raises(ValueError, match="already holds a run"):
        RunDirectory.create(tmp_path / "b", Config())
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoints"]


def test_create_in_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RecordError, match=r"cannot create run directory .*file.*; choose another run directory\.$"):
            RunDirectory.create(path, Config())


def test_create_that_cannot_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RecordError, match=r"cannot write .*config.json: No space left on device\.$"):
        RunDirectory.create(tmp_path / "run", Config())
    assert list(tmp_path.iterdir()) == []


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no fastac run"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text('{"env": {"nonsense": 1}}')
    with pytest.raises(ValueError, match=r"config.json does not fit this fastac: 'nonsense'"):
        RunDirectory.open(tmp_path).read_config()


def test_summary_round_trip_with_null_for_what_json_lacks(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", Config())
    with pytest.raises(ValueError, match=r"cannot read .*summary.json: No such file"):
        run.read_summary()
    run.write_summary({"sps": 1.5, "best": {"return": math.nan, "all": [1, -math.inf]}, "git": None})
    run.write_summary({"sps": 2.5, "best": {"return": math.nan, "all": [1, -math.inf]}, "git": None})
    assert run.read_summary() == {"sps": 2.5, "best": {"return": None, "all": [1, None]}, "git": None}
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "config.json", "summary.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff"])
def test_damaged_summary_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    run = RunDirectory.create(tmp_path / "run", Config())
    (run.path / "summary.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"summary.json is damaged"):
        run.read_summary()


def test_failed_replacement_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    replace_json(path, {"x": 1})
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RecordError, match="No space left on device"):
        replace_json(path, {"x": 2})
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_default_run_dir_is_safe_and_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260102-030405")
    config = Config().replace(env_id="my.mod:ALE/Pong-v5", seed=7)
    runs = [RunDirectory.create_default(config) for _ in range(3)]
    name = "my.mod_ALE_Pong-v5-a2c-seed7-20260102-030405"
    assert [run.path for run in runs] == [Path("runs", name), Path("runs", f"{name}-2"), Path("runs", f"{name}-3")]
    assert len({run.run_id for run in runs}) == 3


def test_runs_that_begin_in_the_same_instant_get_directories_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunDirectory.create_default(Config()), range(8)))
        assert len({run.path for run in runs}) == 8

        def begin(_: int) -> str:
            try:
                return RunDirectory.create(tmp_path / "named", Config()).run_id
            except ValueError as error:
                assert "already holds a run" in str(error)
                return ""

        begun = [run_id for run_id in pool.map(begin, range(8)) if run_id]
    assert begun == [RunDirectory.open(tmp_path / "named").run_id]


def test_a_default_directory_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("in the way")
    with pytest.raises(RecordError, match="cannot create run directory runs/CartPole"):
        RunDirectory.create_default(Config())


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    mine, other = (RunDirectory.create(tmp_path / name, Config()) for name in ("mine", "other"))
    for steps, run in enumerate((mine, other), start=1):
        for mean_return in range(steps):
            save_checkpoint(run.path, steps, {"run_id": run.run_id}, Config(), mean_return)
    assert mine.load_checkpoint("best").env_steps == mine.load_checkpoint("last").env_steps == 1
    mine.check_checkpoints()
    shutil.copytree(other.path / "checkpoints", mine.path / "checkpoints", dirs_exist_ok=True)
    for read in (partial(mine.load_checkpoint, "last"), partial(mine.load_checkpoint, "best"), mine.check_checkpoints):
        with pytest.raises(ValueError, match=rf"step-0+2 was written by another run \(id {other.run_id}, expected"):
            read()


def test_leftovers_of_killed_writers_go_when_a_run_goes_on(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", Config())
    (run.path / ".writing-summary.123.json").write_text("{")
    run.reopen(Config(), 0, {})
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "config.json"]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


SPECIAL = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "socket": make_socket,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to(Path(__file__)),
    "link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.fixture(params=SPECIAL.values(), ids=SPECIAL.keys())
def make_special(request, tmp_path: Path, monkeypatch) -> Callable[[Path], object]:
    """Make something in a place where a regular file is expected."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        request.param(path)

    return make


def test_records_that_are_no_regular_files_are_never_opened(tmp_path: Path, make_special) -> None:
    run = RunDirectory.create(tmp_path / "run", Config())
    make_special(run.path / "summary.json")
    with pytest.raises(ValueError, match=r"cannot read .*summary.json: it is no regular file\.$"):
        run.read_summary()
    for name in ("progress.jsonl", "evaluations.jsonl"):
        (tmp_path / name).mkdir()
        make_special(tmp_path / name / name)
        for mark in (None, (1, 1)):
            with pytest.raises(RecordError, match=rf"cannot write .*{name}: it is no regular file"):
                ProgressWriter(tmp_path / name / "progress.jsonl", mark)
    make_special(run.path / "config.json")
    with pytest.raises(ValueError, match=r"holds no fastac run|config.json: it is no regular file\.$"):
        RunDirectory.open(run.path)


@pytest.mark.parametrize("name", ["best.json", "state.json", "state.safetensors", ""])
def test_parts_of_a_checkpoint_that_are_no_regular_files_are_never_opened(tmp_path, make_special, name) -> None:
    run = RunDirectory.create(tmp_path / "run", Config())
    path = save_checkpoint(run.path, 1, {"run_id": run.run_id}, Config(), 1.0)
    if name == "":
        shutil.rmtree(path)
    make_special(path / name)
    if name == "best.json":
        assert best_mean_return(run.path) is None
        assert run.load_checkpoint("best").env_steps == 1  # the last one
        return
    with pytest.raises(
        ValueError, match=r"cannot be read: it is no regular file; there is no older|not a fastac|a link"
    ):
        run.load_checkpoint("best")
    run.check_checkpoints()
    save_checkpoint(run.path, 1, {"run_id": run.run_id}, Config())
    assert run.load_checkpoint("last").env_steps == 1


def test_a_directory_is_held_whatever_stands_in_the_checkpoints_place(tmp_path, make_special) -> None:
    run = RunDirectory.create(tmp_path / "run", Config())
    with run.held():
        pass
    (run.path / "checkpoints").rmdir()
    make_special(run.path / "checkpoints")
    with run.held():  # a pipe would be waited for
        pass


def test_versions_and_memory() -> None:
    found = versions()
    assert found["numpy"] == np.__version__
    assert {"python", "torch", "gymnasium"} <= set(found)
    assert 10.0 < peak_rss_mb() < 1e6


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    git_commit.cache_clear()
    assert git_commit() is None  # no checkout

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-qm", "x")
    git("tag", "v1")
    git_commit.cache_clear()
    assert git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "f").write_text("22")
    git_commit.cache_clear()
    assert git_commit() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    git_commit.cache_clear()
    assert git_commit() is None  # no git
    git_commit.cache_clear()
