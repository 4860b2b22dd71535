"""Copies of a run's checkpoints for hosts that do not share its directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from fastac.runs.checkpoint import find_checkpoint, run_ids, saved_steps, write_checkpoint
from fastac.runs.files import RecordError, describe, read_regular, replace_file, write_durably

Copy: TypeAlias = Mapping[str, bytes]  # files by their paths in the run directory

_CONFIG = "config.json"


def newest_checkpoint(run_dir: Path) -> tuple[int, str]:
    """Return the env steps of the newest checkpoint in a run directory and its run's id; -1 and "" without one."""
    steps = saved_steps(run_dir)
    if not steps:
        return -1, ""
    return steps[-1], run_ids(run_dir).get(find_checkpoint(run_dir, "last"), "")


def read_copy(run_dir: Path, *checkpoints: Path) -> Copy:
    """Read the configuration and checkpoints of a run, by default the last and the best.

    Raises:
        RecordError: a file cannot be read.
    """
    folders = checkpoints or {find_checkpoint(run_dir, "last"), find_checkpoint(run_dir, "best")}
    paths = [run_dir / _CONFIG, *(path for folder in sorted(folders) for path in sorted(folder.iterdir()))]
    try:
        return {str(path.relative_to(run_dir)): read_regular(path) for path in paths}
    except OSError as error:
        raise RecordError(f"cannot read {error.filename or run_dir} for the other hosts: {describe(error)}.") from error


def write_copy(run_dir: Path, files: Copy) -> None:
    """Write what `read_copy` has read.

    Raises:
        RecordError: the disk is full, or the location is not writable.
    """
    folders: dict[Path, dict[str, bytes]] = {}
    for name, data in files.items():
        if name != _CONFIG:
            path = run_dir / name
            folders.setdefault(path.parent, {})[path.name] = data
    with replace_file(run_dir / _CONFIG) as temporary:
        write_durably(temporary, files[_CONFIG])
    for folder, contents in folders.items():
        write_checkpoint(folder, contents)
