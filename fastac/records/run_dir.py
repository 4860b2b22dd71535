"""A run's directory: its config, its summary, and where the other records go."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastac.config import Config, JsonValue
from fastac.records.files import RecordError, describe, read_json, replace_json

_CONFIG = "config.json"
_SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's directory; make it with `create` or `open`."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Config) -> RunDirectory:
        """Make a directory for a new run and write its `config.json`.

        Raises:
            ValueError: the directory holds a run already.
            RecordError: the place cannot be written.
        """
        if (path / _CONFIG).exists() or (path / "checkpoints").exists():
            raise ValueError(
                f"{path} already holds a run: choose another --run-dir, or continue it with 'fastac resume {path}'."
            )
        is_new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(
                f"cannot create run directory {path}: {describe(error)}; choose another --run-dir."
            ) from error
        try:
            replace_json(path / _CONFIG, config.to_dict())
        except RecordError:
            if is_new:
                path.rmdir()
            raise
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Find an existing run.

        Raises:
            ValueError: the directory holds no run.
        """
        if not (path / _CONFIG).is_file():
            raise ValueError(f"{path} holds no fastac run, expected a directory with {_CONFIG}.")
        return cls(path)

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
        try:
            return Config.from_dict(read_json(self.path / _CONFIG))
        except ValueError as error:
            raise ValueError(f"{self.path / _CONFIG} does not fit this fastac: {error}") from error

    def reopen(self, config: Config) -> None:
        """Go on with a run: `config` is its configuration from now on, and it has not ended.

        Raises:
            RecordError: the place cannot be written.
        """
        replace_json(self.path / _CONFIG, config.to_dict())
        try:
            (self.path / _SUMMARY).unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot remove {self.path / _SUMMARY}: {describe(error)}.") from error

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
    """Return a path that does not exist yet, `runs/<env>-<algo>-seed<seed>-<date>-<time>`."""
    env = re.sub(r"[^\w.-]+", "_", config.env.env_id).strip("_")  # ids hold "/" and ":"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{env}-{config.algo.algo}-seed{config.run.seed}-{stamp}"
    path, attempt = Path("runs", name), 1
    while path.exists():
        attempt += 1
        path = Path("runs", f"{name}-{attempt}")
    return path
