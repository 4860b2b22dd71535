"""A run's directory: its config, its summary, and the paths of its other records."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastac.config import Config, JsonValue
from fastac.runs.checkpoint import Checkpoint, damaged_marks, find_checkpoint, load_checkpoint, run_ids
from fastac.runs.files import (
    RecordError,
    describe,
    one_sentence,
    read_json,
    read_regular,
    remove_leftovers,
    replace_file,
    replace_json,
    write_durably,
)
from fastac.runs.locking import locked

log = logging.getLogger("fastac")

_CONFIG = "config.json"
_SUMMARY = "summary.json"
_CHANGES = "changes.jsonl"
_CHECKPOINTS = "checkpoints"
_RUN_ID = "run_id"  # a key of config.json beside the sections


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's directory; construct it with `create` or `open`.

    Attributes:
        path: its location.
        run_id: unique id of the run, also stored in its checkpoints. Empty for runs older than run ids.
        is_made: whether the run created the directory itself.
    """

    path: Path
    run_id: str
    is_made: bool = field(default=False, compare=False)

    def __fspath__(self) -> str:
        """Return the path as text, for path-like use."""
        return str(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run against other sessions, at most until this process ends.

        Raises:
            ValueError: another session holds the lock.
        """
        with locked(self.path / _CHECKPOINTS, self.path):
            yield

    @classmethod
    def create(cls, path: Path, config: Config) -> RunDirectory:
        """Create a directory for a new run and write its `config.json`.

        Raises:
            ValueError: the directory already holds a run.
            RecordError: the location is not writable.
        """
        is_new = not path.is_dir()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_create(path, error) from error
        return cls._begin(path, config, is_new)

    @classmethod
    def create_default(cls, config: Config) -> RunDirectory:
        """Create a directory with the default name; append a number if the name is taken.

        Creation is atomic, so runs that begin at the same instant get separate directories.

        Raises:
            RecordError: the location is not writable.
        """
        first = path = default_run_dir(config)
        attempt = 1
        while True:
            try:
                path.mkdir(parents=True)
                return cls._begin(path, config, is_new=True)
            except FileExistsError as error:
                if not path.parent.is_dir():
                    raise _cannot_create(path, error) from error
                attempt += 1
                path = first.with_name(f"{first.name}-{attempt}")
            except OSError as error:
                raise _cannot_create(path, error) from error

    @classmethod
    def _begin(cls, path: Path, config: Config, is_new: bool) -> RunDirectory:
        taken = (
            f"{path} already holds a run: choose another run directory, or continue that one (fastac resume {path})."
        )
        if os.path.lexists(path / _CONFIG):
            raise ValueError(taken)
        try:
            (path / _CHECKPOINTS).mkdir()  # atomic: if two runs begin here at the same instant, only one creates it
        except FileExistsError as error:
            raise ValueError(
                f"{path} already holds a run or what is left of one ({_CHECKPOINTS} is there): choose another "
                "run directory, or remove it."
            ) from error
        except OSError as error:
            raise _cannot_create(path, error) from error
        run = cls(path, uuid.uuid4().hex, is_new)
        try:
            run._write_config(config)
        except RecordError:
            (path / _CHECKPOINTS).rmdir()
            if is_new:
                path.rmdir()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Find an existing run.

        Raises:
            ValueError: the directory holds no run, or `config.json` is damaged.
        """
        if not (path / _CONFIG).exists():
            raise ValueError(f"{path} holds no fastac run, expected a directory with {_CONFIG}.")
        return cls(path, str(read_json(path / _CONFIG).get(_RUN_ID, "")))

    def load_checkpoint(self, which: Literal["last", "best"]) -> Checkpoint:
        """Read this run's last checkpoint, or its best (the last one if none is marked best).

        Raises:
            ValueError: there is no checkpoint, it is damaged, or another run wrote it.
        """
        if which == "best":
            self._tell_damaged_marks()
        path = find_checkpoint(self.path, which)
        checkpoint = load_checkpoint(path, self.read_config().env.env_id)
        self._check_id(path, checkpoint.run_id)
        return checkpoint

    def check_checkpoints(self) -> None:
        """Refuse a directory with checkpoints of other runs, which this run could load later by mistake.

        Raises:
            ValueError: a checkpoint is of another run.
        """
        self._tell_damaged_marks()
        for path, run_id in run_ids(self.path).items():
            self._check_id(path, run_id)

    def _tell_damaged_marks(self) -> None:
        for path in damaged_marks(self.path):
            log.warning("%s is damaged: that checkpoint was the best once, and does not count as such now", path)

    def _check_id(self, path: Path, run_id: str) -> None:
        if run_id != self.run_id:
            raise ValueError(
                f"checkpoint {path} was written by another run (id {run_id or 'none'}, expected "
                f"{self.run_id or 'none'}): move it back to that run's directory."
            )

    @property
    def config_path(self) -> Path:
        """The file with the configuration and the run's id."""
        return self.path / _CONFIG

    @property
    def progress_path(self) -> Path:
        """The output file of `ProgressWriter`, one line per iteration."""
        return self.path / "progress.jsonl"

    @property
    def tensorboard_path(self) -> Path:
        """The directory of TensorBoard's event files."""
        return self.path / "tb"

    @property
    def csv_path(self) -> Path:
        """The rows of `progress_path` as a table."""
        return self.path / "progress.csv"

    def service_path(self, name: str) -> Path:
        """The file with what continues the run at a tracking service."""
        return self.path / f"{name}.json"

    def read_config(self) -> Config:
        """Read the configuration that the run began with.

        Raises:
            ValueError: the file is damaged, or from another fastac version.
        """
        content = read_json(self.path / _CONFIG)
        content.pop(_RUN_ID, None)
        with one_sentence(f"{self.path / _CONFIG} does not fit this fastac"):
            return Config.from_dict(content)

    def reopen(self, config: Config, env_steps: int, changes: Mapping[str, tuple[JsonValue, JsonValue]]) -> None:
        """Continue a run: store its configuration and which settings are others from now on; delete its summary.

        Args:
            config: the run's from now on.
            env_steps: where it continues.
            changes: the old and the new value of each changed setting.

        Raises:
            RecordError: the location is not writable.
        """
        remove_leftovers(self.path)
        self._write_config(config)
        self._write_changes(env_steps, changes)
        try:
            (self.path / _SUMMARY).unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot remove {self.path / _SUMMARY}: {describe(error)}.") from error

    def _write_changes(self, env_steps: int, changes: Mapping[str, tuple[JsonValue, JsonValue]]) -> None:
        """Add rows to `changes.jsonl`, in place of those from `env_steps` on."""
        path = self.path / _CHANGES
        rows: list[dict[str, JsonValue]] = []
        with suppress(OSError, ValueError, LookupError, TypeError):  # there is none yet, or it is damaged
            rows = [row for row in map(json.loads, read_regular(path).splitlines()) if row["env_steps"] < env_steps]
        rows += [
            {"env_steps": env_steps, "setting": name, "before": before, "after": after}
            for name, (before, after) in changes.items()
        ]
        if rows or path.exists():
            with replace_file(path) as temporary:
                write_durably(temporary, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def check_there(self) -> None:
        """Detect early that the directory is gone, so that records are not lost; takes 2 us.

        Raises:
            RecordError: the directory was moved or removed.
        """
        if not os.path.exists(os.path.join(self.path, _CONFIG)):  # half the cost of pathlib
            raise RecordError(f"{self.path} was moved or removed while the run was training, which ends it here.")

    def discard(self) -> None:
        """Remove the files of a run that failed before its first update, so that it can be started here again."""
        if self.is_made:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with suppress(OSError):  # the user's own directory: remove only what blocks another run
            (self.path / _CONFIG).unlink(missing_ok=True)
            (self.path / _CHECKPOINTS).rmdir()

    def clear(self) -> None:
        """Remove the files of a run that ended before its first checkpoint, so that it can be started here again."""
        for path in (self.path / _CHECKPOINTS, self.tensorboard_path):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.config_path, self.progress_path, self.csv_path, self.path / "evaluations.jsonl"):
            path.unlink(missing_ok=True)

    def _write_config(self, config: Config) -> None:
        replace_json(self.path / _CONFIG, {_RUN_ID: self.run_id, **config.to_dict()})

    @property
    def has_ended(self) -> bool:
        """Whether there is a summary; a run writes it when it ends."""
        return (self.path / _SUMMARY).is_file()

    def write_summary(self, summary: Mapping[str, JsonValue]) -> None:
        """Write `summary.json`, replacing an older one.

        Raises:
            RecordError: the disk is full or not writable.
        """
        replace_json(self.path / _SUMMARY, summary)

    def read_summary(self) -> dict[str, JsonValue]:
        """Read `summary.json`.

        Raises:
            ValueError: the run has not ended yet, or the file is damaged.
        """
        return read_json(self.path / _SUMMARY)


def default_run_dir(config: Config) -> Path:
    """Return the default directory of a run that begins now, `runs/<env>-<algo>-seed<seed>-<date>-<time>`."""
    env = re.sub(r"[^\w.-]+", "_", config.env.env_id).strip("_")  # ids contain "/" and ":"
    return Path("runs", f"{env}-{config.algo.algo}-seed{config.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}")


def _cannot_create(path: Path, error: OSError) -> RecordError:
    return RecordError(f"cannot create run directory {path}: {describe(error)}; choose another run directory.")
