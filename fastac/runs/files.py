"""Atomic file writes, and safe reads of files that others may have modified."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from fastac.config import JsonValue
from fastac.contract import WorkerFailure
from fastac.system import sync_directory


class RecordError(RuntimeError):
    """A record could not be written; the message is one sentence that names the path and the reason."""


def describe(error: OSError) -> str:
    """Return the system's reason without the path, which the caller's sentence already names."""
    return error.strerror or str(error) or type(error).__name__


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Convert OSError to a RecordError with a one-sentence message."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"cannot write {path}: {describe(error)}.") from error


def explain(error: BaseException) -> str:
    """Return an exception as part of a sentence, in at most 200 characters."""
    text = " ".join(str(error).split())[:200].rstrip(".")
    return text if text and isinstance(error, ValueError) else f"{type(error).__name__}: {text}".removesuffix(": ")


@contextmanager
def one_sentence(what: str) -> Iterator[None]:
    """Turn any exception of the block, raised for malformed content, into one sentence.

    Args:
        what: begins the sentence; the reason follows after a colon.

    Raises:
        ValueError: the block raised an exception.
        WorkerFailure: the block raised it; passed on unchanged.
    """
    try:
        yield
    except WorkerFailure:  # a process was lost; this says nothing about the content
        raise
    except Exception as error:  # for a modified file, third-party code may raise any exception
        raise ValueError(f"{what}: {explain(error)}.") from error


def read_regular(path: Path) -> bytes:
    """Read a regular file.

    Other kinds are not opened: a pipe or device could block forever, and a link may lead anywhere.

    Raises:
        OSError: it is missing, unreadable, too large for this machine's memory, or not a regular file.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    # Check again after opening, since the file may have been replaced in between.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        try:
            return file.read()
        except MemoryError as error:
            raise OSError(errno.EFBIG, "it is too large for the memory", str(path)) from error


def check_appendable(path: Path) -> None:
    """Refuse an existing path that is not a regular file, such as a pipe, which would block.

    Raises:
        OSError: the path exists and is not a regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_TEMPORARY = ".writing-"


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed writers; no process may be writing in `folder` at that time."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # leftovers do no harm
            path.unlink()


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; it replaces `path` durably if the block succeeds.

    A reader sees the old file or the new one, never a partial one. If the block fails, no temporary file remains.

    Raises:
        RecordError: the disk is full, or the location is not writable.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.stem}.{os.getpid()}{path.suffix}")
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
    """Write `content` to `path` atomically.

    Numbers that are not finite become null, because standard JSON has none.

    Raises:
        RecordError: the disk is full, or the location is not writable.
    """
    with replace_file(path) as temporary:
        write_durably(temporary, json.dumps(_finite(dict(content)), indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, JsonValue]:
    """Read a JSON object.

    Raises:
        ValueError: the file is missing, unreadable, or does not hold a JSON object.
    """
    try:
        content = json.loads(read_regular(path))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {describe(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a JSON {type(content).__name__}, expected an object.")
    return cast("dict[str, JsonValue]", content)
