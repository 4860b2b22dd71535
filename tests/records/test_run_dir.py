"""Run directories and provenance."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fastac.config import Config
from fastac.records import (
    RecordError,
    RunDirectory,
    default_run_dir,
    git_commit,
    peak_rss_mb,
    provenance,
    save_checkpoint,
    versions,
)
from fastac.records.files import replace_json


def test_create_writes_the_config_and_open_finds_it(tmp_path: Path) -> None:
    config = Config().replace(seed=3, hidden_sizes=(8,), until_return=475.0)
    created = RunDirectory.create(tmp_path / "a" / "b", config)
    assert [path.name for path in created.path.iterdir()] == ["config.json"]
    assert RunDirectory.open(created.path) == created
    assert RunDirectory.open(created.path).read_config() == config
    assert created.progress_path.parent == created.tensorboard_path.parent == created.path


def test_create_takes_an_empty_directory_and_refuses_a_run(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, Config())
    with pytest.raises(ValueError, match=r"already holds a run: choose another --run-dir, or .*'fastac resume /"):
        RunDirectory.create(tmp_path, Config())
    (tmp_path / "b").mkdir()
    save_checkpoint(tmp_path / "b", 1, {"x": np.ones(1)}, Config())
    with pytest.raises(ValueError, match="already holds a run"):
        RunDirectory.create(tmp_path / "b", Config())
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoints"]


def test_create_in_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RecordError, match=r"cannot create run directory .*file.*; choose another --run-dir\.$"):
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
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "summary.json"]


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
    first = default_run_dir(config)
    assert first == Path("runs/my.mod_ALE_Pong-v5-a2c-seed7-20260102-030405")
    assert not Path("runs").exists()
    RunDirectory.create(first, config)
    second = default_run_dir(config)
    RunDirectory.create(second, config)
    assert [second.name[-2:], default_run_dir(config).name[-2:]] == ["-2", "-3"]


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
