"""Files that are either whole or absent."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from fastac.config import JsonValue


class RecordError(RuntimeError):
    """A record could not be written; the message is one sentence that names the path and the reason."""


def describe(error: OSError) -> str:
    """Return the system's reason without the path, which the caller's sentence names already."""
    return error.strerror or str(error) or type(error).__name__


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the disk has the directory's entries, so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; it takes `path`'s place durably if the block succeeds.

    A reader sees the old file or the new one, never half of one, and nothing is left if it fails.

    Raises:
        RecordError: the disk is full, or the place cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {describe(error)}.") from error


def replace_json(path: Path, content: Mapping[str, JsonValue]) -> None:
    """Write `content` to `path` whole.

    Numbers that are not finite become null, because other programs' JSON has none.

    Raises:
        RecordError: the disk is full, or the place cannot be written.
    """
    with replace_file(path) as temporary:
        write_durably(temporary, json.dumps(_finite(dict(content)), indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, JsonValue]:
    """Read a JSON object.

    Raises:
        ValueError: the file is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {describe(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a JSON {type(content).__name__}, expected an object.")
    return cast("dict[str, JsonValue]", content)
