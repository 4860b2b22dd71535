"""A run's directory: its config, its summary, and where the other records go."""

from __future__ import annotations

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
from fastac.runs.files import RecordError, describe, one_sentence, read_json, remove_leftovers, replace_json

log = logging.getLogger("fastac")

_CONFIG = "config.json"
_SUMMARY = "summary.json"
_CHECKPOINTS = "checkpoints"
_RUN_ID = "run_id"  # stands in config.json beside the sections


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's directory; make it with `create` or `open`.

    Attributes:
        path: where it is.
        run_id: tells this run from all others; its checkpoints have it too. Empty for a run that was begun before
            there were any.
        is_made: whether the run has made the directory itself.
    """

    path: Path
    run_id: str
    is_made: bool = field(default=False, compare=False)

    def __fspath__(self) -> str:
        """Return where it is, for whatever takes a path."""
        return str(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other sessions out of this run, until this process ends at the latest.

        Raises:
            ValueError: another session has it.
        """
        lock = self._lock()
        try:
            yield
        finally:
            if lock is not None:
                self._unlock(lock)

    def _lock(self) -> int | None:
        """Return a file descriptor that holds the lock, or None where there are no locks."""
        try:
            import fcntl

            lock = os.open(self.path / _CHECKPOINTS, os.O_RDONLY | os.O_DIRECTORY)  # a pipe would be waited for
        except (ImportError, AttributeError, OSError):  # Windows; what somebody has removed, or replaced
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ValueError(
                f"{self.path} is open in another session, of this process or another: close that one first."
            ) from error
        except OSError:  # a file system without locks
            pass
        return lock

    @staticmethod
    def _unlock(lock: int) -> None:
        """Let go, also where a process that was forked meanwhile has the file too."""
        import fcntl

        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)

    @classmethod
    def create(cls, path: Path, config: Config) -> RunDirectory:
        """Make a directory for a new run and write its `config.json`.

        Raises:
            ValueError: the directory holds a run already.
            RecordError: the place cannot be written.
        """
        is_new = not path.is_dir()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_create(path, error) from error
        return cls._begin(path, config, is_new)

    @classmethod
    def create_default(cls, config: Config) -> RunDirectory:
        """Make a directory of the default name, numbered where there is one of that name.

        Runs that begin in the same instant get directories of their own: whoever makes one has it.

        Raises:
            RecordError: the place cannot be written.
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
            (path / _CHECKPOINTS).mkdir()  # of two runs that begin here in the same instant, one makes it
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
        """Read this run's last checkpoint, or its best (the last one where none was marked best).

        Raises:
            ValueError: there is none, it is damaged, or it was written by another run.
        """
        if which == "best":
            self._tell_damaged_marks()
        path = find_checkpoint(self.path, which)
        checkpoint = load_checkpoint(path, self.read_config().env.env_id)
        self._check_id(path, checkpoint.run_id)
        return checkpoint

    def check_checkpoints(self) -> None:
        """Refuse a directory with checkpoints of other runs, by which this one could be misled later.

        Raises:
            ValueError: there is one.
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
        """The configuration, and the run's id."""
        return self.path / _CONFIG

    @property
    def progress_path(self) -> Path:
        """Where `ProgressWriter` writes, one line per iteration."""
        return self.path / "progress.jsonl"

    @property
    def tensorboard_path(self) -> Path:
        """The directory of TensorBoard's event files."""
        return self.path / "tb"

    def read_config(self) -> Config:
        """Read the configuration the run began with.

        Raises:
            ValueError: the file is damaged, or of another fastac.
        """
        content = read_json(self.path / _CONFIG)
        content.pop(_RUN_ID, None)
        with one_sentence(f"{self.path / _CONFIG} does not fit this fastac"):
            return Config.from_dict(content)

    def reopen(self, config: Config) -> None:
        """Go on with a run: `config` is its configuration from now on, and it has not ended.

        Raises:
            RecordError: the place cannot be written.
        """
        remove_leftovers(self.path)
        self._write_config(config)
        try:
            (self.path / _SUMMARY).unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot remove {self.path / _SUMMARY}: {describe(error)}.") from error

    def check_there(self) -> None:
        """Find out early that all that is written goes nowhere; 2 us.

        Raises:
            RecordError: somebody has moved or removed the directory.
        """
        if not os.path.exists(self.path / _CONFIG):
            raise RecordError(f"{self.path} was moved or removed while the run was training, which ends it here.")

    def discard(self) -> None:
        """Remove what a run has written that failed before its first update, so that it can be begun again there."""
        if self.is_made:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with suppress(OSError):  # somebody's own directory: only what keeps another run out
            (self.path / _CONFIG).unlink(missing_ok=True)
            (self.path / _CHECKPOINTS).rmdir()

    def _write_config(self, config: Config) -> None:
        replace_json(self.path / _CONFIG, {_RUN_ID: self.run_id, **config.to_dict()})

    @property
    def has_ended(self) -> bool:
        """Whether there is a summary, which a run writes when it ends."""
        return (self.path / _SUMMARY).is_file()

    def write_summary(self, summary: Mapping[str, JsonValue]) -> None:
        """Write `summary.json`, replacing an older one.

        Raises:
            RecordError: the disk is full or cannot be written.
        """
        replace_json(self.path / _SUMMARY, summary)

    def read_summary(self) -> dict[str, JsonValue]:
        """Read `summary.json`.

        Raises:
            ValueError: the run has not ended yet, or the file is damaged.
        """
        return read_json(self.path / _SUMMARY)


def default_run_dir(config: Config) -> Path:
    """Return the name of a run that begins now, `runs/<env>-<algo>-seed<seed>-<date>-<time>`."""
    env = re.sub(r"[^\w.-]+", "_", config.env.env_id).strip("_")  # ids hold "/" and ":"
    return Path("runs", f"{env}-{config.algo.algo}-seed{config.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}")


def _cannot_create(path: Path, error: OSError) -> RecordError:
    return RecordError(f"cannot create run directory {path}: {describe(error)}; choose another run directory.")
