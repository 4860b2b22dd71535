"""The trees that are compared, a base revision and the working tree: each is written to a folder of its own."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_MAINS = ("origin/main", "main")
_CACHES = ("*.nbi", "*.nbc")  # Numba's


class InputError(ValueError):
    """What the user asked for cannot be done; the message is a sentence that says why."""


class NoBaseError(Exception):
    """There is no revision to compare with; the message is a sentence for the user."""


class Base(NamedTuple):
    """The revision to compare with, and why it is this one."""

    commit: str
    why: str


def find_root(folder: Path) -> Path:
    """Return the root of the git checkout that a folder is in.

    Raises:
        InputError: it is in none.
    """
    root = _git(folder, "rev-parse", "--show-toplevel")
    if not root:
        raise InputError(f"{folder} is in no git checkout, so there is no revision to compare with: run it in one.")
    return Path(root)


def resolve_base(root: Path, revision: str | None = None, watched: str = ".") -> Base:
    """Return the revision to compare with: the one named, else where this branch left main.

    On main itself it is the commit before, which is HEAD if there are uncommitted changes in the folder `watched`.

    Raises:
        InputError: `revision` names no commit.
        NoBaseError: none was named, and there is none to be found.
    """
    if revision is not None:
        commit = _commit(root, revision)
        if commit is None:
            raise InputError(
                f"base is {revision!r}, which names no commit of this clone: give a commit, branch or tag that "
                "`git log` shows; `git fetch --unshallow` brings what a shallow clone lacks."
            )
        return Base(commit, f"base is {revision}")
    head = _commit(root, "HEAD")
    if head is None:
        raise NoBaseError("this is no git checkout with a commit, so there is no earlier revision to compare with")
    main = next((name for name in _MAINS if _commit(root, name)), None)
    if main is not None and _git(root, "symbolic-ref", "--short", "HEAD") != "main":
        fork = _git(root, "merge-base", "HEAD", main)
        if fork is None:
            raise NoBaseError(
                f"this clone does not reach back to where HEAD left {main}: run `git fetch --unshallow`, or name a base"
            )
        if fork != head:
            return Base(fork, f"where HEAD left {main}")
    if _git(root, "status", "--porcelain", "--", watched):
        return Base(head, "the commit under the uncommitted changes")
    before = _commit(root, "HEAD~1")
    if before is None:
        raise NoBaseError("this clone holds no commit before HEAD: run `git fetch --unshallow`, or name a base")
    return Base(before, "the commit before")


def export_revision(root: Path, commit: str, tree: Path, paths: Sequence[str] = ()) -> None:
    """Write a commit's files to the folder `tree`; only those in `paths`, if given.

    Raises:
        InputError: that commit has no such paths.
    """
    done = subprocess.run(["git", "-C", str(root), "archive", commit, *paths], capture_output=True)
    if done.returncode != 0:
        raise InputError(f"base is {commit}, which holds no {' and '.join(paths)}: name a later revision.")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(tree, filter="data")


def export_working_tree(root: Path, tree: Path, paths: Sequence[str] = ()) -> None:
    """Copy the files as they lie there, uncommitted changes too, but not what git ignores."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths)
    assert listed is not None, "the root of a git checkout"
    for name in filter(None, listed.split("\0")):
        source, target = root / name, tree / name
        if source.is_file():  # else it was deleted, or is another repository
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def copy_compiled(root: Path, tree: Path) -> None:
    """Copy what Numba has compiled of fastac to a tree; where the sources differ it is compiled anew all the same."""
    for pattern in _CACHES:
        for source in (root / "fastac").rglob(pattern):
            target = tree / source.relative_to(root)
            if target.parent.parent.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copy2(source, target)


def has_uncommitted(root: Path) -> bool:
    """Return whether a file differs from HEAD, or is new."""
    return bool(_git(root, "status", "--porcelain"))


def _commit(root: Path, revision: str) -> str | None:
    return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")


def _git(root: Path, *words: str) -> str | None:
    """Return what git prints, None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
