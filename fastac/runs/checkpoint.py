"""Checkpoints in safetensors and JSON, without pickle; each is complete or absent.

A checkpoint is a directory `checkpoints/step-000000123456/` with two files. `state.safetensors` holds
every array of a state tree, its keys joined with "/". `state.json` holds the rest (schema, config,
env steps, versions, scalar leaves) and two digests: of the arrays' file, and of its own bytes. A third
file, `best.json`, marks a checkpoint that was the best so far when it was marked. If several checkpoints are
marked, the mark with the highest number counts. So a checkpoint and its mark are saved atomically.

A save builds a hidden sibling directory and renames it, so a kill at any moment leaves the existing
checkpoints intact. Replacing a checkpoint needs two renames; between them the old one is called
`step-...~`, which readers accept if its successor is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as dump_arrays

from fastac.config import Config, JsonValue
from fastac.contract import StateTree
from fastac.runs.files import RecordError, describe, one_sentence, read_regular, write_durably
from fastac.runs.older_checkpoints import OLDEST, upgrade
from fastac.runs.provenance import versions
from fastac.runs.trees import LoadedTree, join_tree, read_tree, split_tree
from fastac.system import sync_directory

SCHEMA = 4
_FOLDER = "checkpoints"
_ARRAYS = "state.safetensors"
_REST = "state.json"
_BEST = "best.json"
_NEW_BEST = ".best.json"  # while it is being written
_TEMPORARY = ".saving-"
_NAME = re.compile(r"step-(\d{12,})~?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        config: the run's configuration.
        env_steps: environment steps done when it was saved.
        state: the saved tree; arrays and tensors are returned as writable numpy arrays.
    """

    config: Config
    env_steps: int
    state: LoadedTree

    @property
    def run_id(self) -> str:
        """Id of the run that wrote the checkpoint; empty if it predates run ids."""
        return str(self.state.get("run_id", ""))


class _DamageError(ValueError):
    """A checkpoint's files differ from those that were saved."""


class _OtherVersionError(ValueError):
    """A checkpoint was written by a newer or older fastac."""


def save_checkpoint(
    run_dir: Path, env_steps: int, state: StateTree, config: Config, mean_return: float | None = None
) -> Path:
    """Save a checkpoint, replacing one of the same `env_steps`, and return its directory.

    Args:
        run_dir: the run's directory.
        env_steps: environment steps done.
        state: what to save.
        config: the run's configuration.
        mean_return: the mean return of the evaluation that makes `state` the best; the checkpoint is then marked
            in the same step. None marks nothing, and keeps the mark of a replaced checkpoint.

    Raises:
        RecordError: the disk is full or cannot be written; earlier checkpoints are untouched.
        ValueError: a leaf or key of `state` cannot be saved.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    scalars = split_tree(state, "", arrays)
    packed = dump_arrays(arrays)
    rest = _seal(
        {
            "schema": SCHEMA,
            "env_steps": env_steps,
            "versions": dict(versions()),
            "config": config.to_dict(),
            "state": scalars,
            "arrays_sha256": hashlib.sha256(packed).hexdigest(),
        }
    )
    target = run_dir / _FOLDER / f"step-{env_steps:012d}"
    marks = _read_marks(run_dir)
    mark = marks.get(env_steps) if mean_return is None else _next_mark(marks, mean_return)
    files = {_ARRAYS: packed, _REST: rest} | ({} if mark is None else {_BEST: mark.seal()})
    try:
        _write_directory(target, files)
    except OSError as error:
        kept = [path.name for path in _saved(target.parent).values()]
        fate = f"the last good checkpoint, {kept[-1]}, is kept" if kept else "there is no earlier checkpoint"
        raise RecordError(f"cannot save checkpoint {target}: {describe(error)}; {fate}.") from error
    return target


def load_checkpoint(path: Path, expected_env_id: str | None = None) -> Checkpoint:
    """Read a checkpoint and verify its digests.

    Raises:
        ValueError: it is not a checkpoint, is damaged, is from another fastac version, or is of another environment
            than `expected_env_id`. If it is damaged, the message names an older good one and how to go back to it.
    """
    try:
        checkpoint = _read(path)
    except _DamageError as error:
        raise ValueError(f"{error}; {_advise(path)}.") from error
    env_id = checkpoint.config.env.env_id
    if expected_env_id is not None and env_id != expected_env_id:
        raise ValueError(f"checkpoint {path} was trained on {env_id}, expected {expected_env_id}.")
    return checkpoint


def write_checkpoint(path: Path, contents: Mapping[str, bytes]) -> None:
    """Create or replace a checkpoint from its files, as another host has read them.

    Raises:
        RecordError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    try:
        _write_directory(path, contents)
    except OSError as error:
        raise RecordError(f"cannot write checkpoint {path}: {describe(error)}.") from error


def saved_steps(run_dir: Path) -> list[int]:
    """Return the env steps of a run's checkpoints, oldest first."""
    return list(_saved(run_dir / _FOLDER))


def find_checkpoint(run_dir: Path, which: Literal["last", "best"]) -> Path:
    """Return a run's last checkpoint, or its best (the last one if none is marked best).

    Raises:
        ValueError: the run has no checkpoint.
    """
    saved = _saved(run_dir / _FOLDER)
    if not saved:
        raise ValueError(
            f"{run_dir} holds no checkpoint yet, expected one in {run_dir / _FOLDER}: "
            "if its run is over, delete it and train anew."
        )
    best = _best_steps(_read_marks(run_dir)) if which == "best" else None
    return saved[max(saved) if best is None else best]


def mark_best(run_dir: Path, path: Path, mean_return: float) -> None:
    """Mark an existing checkpoint as the best, with its mean return; this supersedes earlier marks.

    Raises:
        RecordError: the disk is full or cannot be written; earlier marks still hold.
    """
    mark = _next_mark(_read_marks(run_dir), mean_return)
    temporary = path / _NEW_BEST
    try:
        write_durably(temporary, mark.seal())
        temporary.replace(path / _BEST)
        sync_directory(path)
    except OSError as error:
        raise RecordError(f"cannot mark checkpoint {path} as the best: {describe(error)}.") from error


def best_mark(run_dir: Path) -> tuple[int, float] | None:
    """Return the env steps and the mean return of the checkpoint marked best, or None if none is marked."""
    marks = _read_marks(run_dir)
    best = _best_steps(marks)
    return None if best is None else (best, marks[best].mean_return)


def best_mean_return(run_dir: Path) -> float | None:
    """Return the mean return of the checkpoint marked best, or None if none is marked."""
    mark = best_mark(run_dir)
    return None if mark is None else mark[1]


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Delete all checkpoints except the last `keep` and the best, and the leftovers of killed saves.

    Raises:
        RecordError: a checkpoint cannot be deleted.
    """
    with suppress(OSError):  # nothing was saved yet
        _clean(run_dir / _FOLDER)
    saved = _saved(run_dir / _FOLDER)
    best = _best_steps(_read_marks(run_dir))
    for steps in list(saved)[:-keep]:
        if steps != best:
            try:
                _remove(saved[steps])
            except OSError as error:
                raise RecordError(f"cannot delete old checkpoint {saved[steps]}: {describe(error)}.") from error


def run_ids(run_dir: Path) -> dict[Path, str]:
    """Return which run wrote each checkpoint in a run's directory; skip damaged checkpoints."""
    found = {}
    for path in _saved(run_dir / _FOLDER).values():
        with suppress(ValueError):
            found[path] = _to_run_id(_unseal(path / _REST).get("state"))
    return found


def _to_run_id(state: JsonValue) -> str:
    return str(state.get("run_id", "")) if isinstance(state, dict) else ""


@dataclass(frozen=True, slots=True)
class _Mark:
    """Marks a checkpoint as the best.

    Attributes:
        mean_return: the mean return of its evaluation.
        number: the count of marks so far, including this one.
    """

    mean_return: float
    number: int

    def seal(self) -> bytes:
        """Return the content of the mark's file."""
        return _seal({"mean_return": self.mean_return, "number": self.number})


def _next_mark(marks: Mapping[int, _Mark], mean_return: float) -> _Mark:
    assert math.isfinite(mean_return), "an evaluation refuses rewards that are not finite"
    return _Mark(float(mean_return), 1 + max((mark.number for mark in marks.values()), default=0))


def _read_marks(run_dir: Path) -> dict[int, _Mark]:
    """Return the valid marks by their checkpoints' env steps."""
    marks: dict[int, _Mark] = {}
    for steps, path in _saved(run_dir / _FOLDER).items():
        with suppress(ValueError):
            marks[steps] = _read_mark(path / _BEST)
    return marks


def damaged_marks(run_dir: Path) -> list[Path]:
    """Return the files of damaged marks; their checkpoints do not count as the best."""
    damaged = []
    for path in _saved(run_dir / _FOLDER).values():
        if os.path.lexists(path / _BEST):
            try:
                _read_mark(path / _BEST)
            except ValueError:
                damaged.append(path / _BEST)
    return damaged


def _read_mark(path: Path) -> _Mark:
    body = _unseal(path)
    mean_return, number = body.get("mean_return"), body.get("number")
    if not isinstance(mean_return, float) or not math.isfinite(mean_return) or type(number) is not int:
        raise ValueError(f"{path} is no mark")
    return _Mark(mean_return, number)


def _best_steps(marks: Mapping[int, _Mark]) -> int | None:
    return max(marks, key=lambda steps: marks[steps].number, default=None)


def _seal(body: dict[str, JsonValue]) -> bytes:
    """Return `body` as JSON with its own digest; the same body always gives the same bytes."""
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}).encode() + b"\n"


def _write_directory(target: Path, contents: Mapping[str, bytes]) -> None:
    """Create or replace a directory of files durably, or leave everything unchanged."""
    folder = target.parent
    folder.mkdir(exist_ok=True)
    _clean(folder)
    temporary = folder / f"{_TEMPORARY}{target.name}"
    temporary.mkdir()
    try:
        for name, data in contents.items():
            write_durably(temporary / name, data)
        sync_directory(temporary)
        _exchange(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # already gone if all went well
    sync_directory(folder)
    _clean(folder)


def _exchange(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; a full directory cannot be overwritten, so rename it aside first."""
    if not os.path.lexists(target):
        temporary.rename(target)
        return
    aside = target.with_name(target.name + "~")
    target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        aside.rename(target)
        raise


def _clean(folder: Path) -> None:
    """Delete the leftovers of killed saves, and replaced checkpoints."""
    for path in folder.iterdir():
        replaced = path.name.endswith("~") and path.with_name(path.name[:-1]).exists()
        with suppress(OSError):
            if replaced or path.name.startswith(_TEMPORARY):
                _remove(path)
            elif path.is_dir():
                (path / _NEW_BEST).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Delete a directory tree, or any other file in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _saved(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by env steps, oldest first; `step-N` wins over `step-N~`."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step-*"), reverse=True):  # "step-N~" sorts before "step-N"
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _read(path: Path) -> Checkpoint:
    """Read one checkpoint; raise `_DamageError` if its bytes differ from those that were saved."""
    if path.parent.is_symlink() or path.is_symlink():
        raise ValueError(f"{path} is a link, or below one, expected a checkpoint's own directory.")
    if not any(os.path.lexists(path / name) for name in (_REST, _ARRAYS)):
        raise ValueError(f"{path} is not a fastac checkpoint, expected a directory with {_REST} and {_ARRAYS}.")
    body = _unseal(path / _REST)
    packed = _read_bytes(path / _ARRAYS)
    if hashlib.sha256(packed).hexdigest() != body.get("arrays_sha256"):
        raise _DamageError(f"checkpoint file {path / _ARRAYS} is damaged: {len(packed)} bytes with a wrong sha256")
    with one_sentence(f"checkpoint {path} does not fit this fastac"):
        config = Config.from_dict(cast("dict[str, object]", body["config"]))
        state = join_tree(read_tree(body["state"], "state"), load_arrays(packed))
        upgraded = cast(LoadedTree, upgrade(state, cast(int, body["schema"])))
        return Checkpoint(config, _to_env_steps(body["env_steps"], path), upgraded)


def _to_env_steps(value: JsonValue, path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    if type(value) is not int or match is None or value != int(match[1]):
        raise ValueError(f"env_steps is {value!r}, expected what its directory is called")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise _DamageError(f"checkpoint file {path} cannot be read: {describe(error)}") from error


def _unseal(path: Path) -> dict[str, JsonValue]:
    """Read the output of `_seal`; sealing it again must give the same bytes."""
    sealed = _read_bytes(path)
    try:
        body = json.loads(sealed)
        if isinstance(body, dict):
            _check_schema(body.get("schema"), path)
            if isinstance(body.pop("sha256", None), str) and _seal(body) == sealed:
                return cast("dict[str, JsonValue]", body)
    except _OtherVersionError:
        raise
    except (ValueError, RecursionError) as error:
        raise _DamageError(f"checkpoint file {path} is damaged: it is not JSON ({error})") from error
    raise _DamageError(f"checkpoint file {path} is damaged: {len(sealed)} bytes with a wrong sha256")


def _check_schema(schema: object, path: Path) -> None:
    if isinstance(schema, int) and schema > SCHEMA:
        raise _OtherVersionError(
            f"checkpoint {path.parent} was written by a newer fastac (schema {schema}, this one reads up to "
            f"{SCHEMA}): upgrade fastac."
        )
    if isinstance(schema, int) and schema < OLDEST:
        raise _OtherVersionError(
            f"checkpoint {path.parent} was written by an older fastac (schema {schema}, this one reads {OLDEST} "
            f"to {SCHEMA}): read it with that one, or train anew."
        )


def _advise(damaged: Path) -> str:
    """Name the checkpoint to continue from instead of a damaged one."""
    for path in _older(damaged):
        try:
            _read(path)
        except ValueError:
            continue
        return f"{path.name} beside it is older and good: delete {damaged} to continue from there"
    return "there is no older good checkpoint beside it, so train again"


def _older(path: Path) -> Iterator[Path]:
    """Yield the checkpoints older than `path`, latest first."""
    match = _NAME.fullmatch(path.name)
    for steps, other in reversed(_saved(path.parent).items()):
        if match and steps < int(match[1]):
            yield other
