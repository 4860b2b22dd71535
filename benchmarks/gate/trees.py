"""The trees that are compared: the working tree, a base revision, and the working tree with a slowdown put in."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_MAINS = ("origin/main", "main")
_HOW = "name one with `make bench-check BASE=rev`"


class InputError(ValueError):
    """What the user asked for cannot be done; the message is a sentence that says why."""


class NoBaseError(Exception):
    """There is no revision to compare with; the message is a sentence for the user."""


class Base(NamedTuple):
    commit: str
    why: str  # this one


def resolve_base(root: Path, revision: str | None = None) -> Base:
    """Return the revision to compare with: the one named, else where this branch left main.

    On main itself it is the commit before, which is HEAD if `fastac/` has uncommitted changes.

    Raises:
        InputError: `revision` names no commit.
        NoBaseError: none was named, and there is none to be found.
    """
    if revision is not None:
        commit = _commit(root, revision)
        if commit is None:
            raise InputError(
                f"BASE is {revision!r}, which names no commit of this clone: give a commit, branch or tag that "
                "`git log` shows; `git fetch --unshallow` brings what a shallow clone lacks."
            )
        return Base(commit, f"BASE={revision}")
    head = _commit(root, "HEAD")
    if head is None:
        raise NoBaseError("this is no git checkout with a commit, so there is no earlier revision to compare with")
    main = next((name for name in _MAINS if _commit(root, name)), None)
    if main is not None and _git(root, "symbolic-ref", "--short", "HEAD") != "main":
        fork = _git(root, "merge-base", "HEAD", main)
        if fork is None:
            raise NoBaseError(
                f"this clone does not reach back to where HEAD left {main}: run `git fetch --unshallow`, or {_HOW}"
            )
        if fork != head:
            return Base(fork, f"where HEAD left {main}")
    if _git(root, "status", "--porcelain", "--", "fastac"):
        return Base(head, "the commit under the uncommitted changes")
    before = _commit(root, "HEAD~1")
    if before is None:
        raise NoBaseError(f"this clone holds no commit before HEAD: run `git fetch --unshallow`, or {_HOW}")
    return Base(before, "the commit before")


def export_revision(root: Path, commit: str, tree: Path) -> None:
    """Write the package as of a commit to `tree/fastac`.

    Raises:
        InputError: that commit has none.
    """
    done = subprocess.run(["git", "-C", str(root), "archive", commit, "fastac"], capture_output=True)
    if done.returncode != 0:
        raise InputError(f"BASE is {commit}, which holds no fastac/ to compare with: name a later revision.")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(tree, filter="data")


def export_working_tree(root: Path, tree: Path) -> None:
    """Copy the package as it lies there, uncommitted changes too: both sides then start without compiled files."""
    shutil.copytree(root / "fastac", tree / "fastac", ignore=shutil.ignore_patterns("__pycache__"))


# What is appended to `fastac/__init__.py`. Busy for a share of the call's own CPU time, as a slower call would be.
_SLOWDOWN = """

def _slow_down(owner, method):
    from time import process_time

    call = getattr(owner, method)

    def slowed(*args, **kwargs):
        began = process_time()
        result = call(*args, **kwargs)
        until = process_time() + {share} * (process_time() - began)
        while process_time() < until:
            pass
        return result

    setattr(owner, method, slowed)


from {module} import {owner} as _owner

_slow_down(_owner, "{method}")
"""
_METHODS = {
    "collector": ("fastac.rollout", "Collector", "collect"),
    "update": ("fastac.learning.learner", "Learner", "learn"),
}


def inject_slowdown(tree: Path, part: str, share: float) -> None:
    """Make the collector or the update of an exported tree slower by a share of its own time."""
    module, owner, method = _METHODS[part]
    with (tree / "fastac" / "__init__.py").open("a") as file:
        file.write(_SLOWDOWN.format(share=share, module=module, owner=owner, method=method))


def _commit(root: Path, revision: str) -> str | None:
    return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")


def _git(root: Path, *words: str) -> str | None:
    """Return what git prints, None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
