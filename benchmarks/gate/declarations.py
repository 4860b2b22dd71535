"""What `counts.json` declares: that other bits, or more memory, than in the base are meant, and why.

For every run of `arithmetic` and every row of memory it holds a version and a reason. `make bench-accept REASON="..."`
raises the version of what is not as in the base. What changed and has the version of the base is undeclared, and fails.
No digest and no size is in the file, since machines differ in both.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypedDict

from benchmarks.gate.trees import COUNTS_PATH, ROOT
from fastac.tools.gate.trees import InputError

HOW = 'If that is meant, run `make bench-accept REASON="why"` and commit benchmarks/counts.json.'

Kind = Literal["arithmetic", "memory"]


class Declaration(TypedDict):
    version: int
    reason: str


# By name of the run, or row of memory.
Declared = dict[str, Declaration]


def undeclared(changed: Iterable[str], before: Declared, now: Declared) -> list[str]:
    """Return what changed though its version is the base's."""
    return [name for name in changed if _version(before, name) == _version(now, name)]


def declare(names: Iterable[str], changed: Iterable[str], before: Declared, reason: str | None) -> Declared:
    """Return the declarations of all `names`, with which no change is undeclared.

    Raises:
        InputError: something changed, and no reason is given.
    """
    known = set(changed)
    if known and not reason:
        raise InputError(f'{" and ".join(sorted(known))} changed, so say why: make bench-accept REASON="why".')
    first = Declaration(version=1, reason="the first")
    return {
        name: Declaration(version=_version(before, name) + 1, reason=str(reason))
        if name in known
        else before.get(name, first)
        for name in names
    }


def _version(declared: Declared, name: str) -> int:
    return declared[name]["version"] if name in declared else 0


def read(kind: Kind, path: Path = COUNTS_PATH) -> Declared:
    """Return what this working tree declares."""
    return _find(kind, path.read_text()) if path.exists() else {}


def read_base(kind: Kind, commit: str, root: Path = ROOT) -> Declared:
    """Return what a revision declares: nothing, before there was anything to declare."""
    shown = ["git", "-C", str(root), "show", f"{commit}:benchmarks/counts.json"]
    done = subprocess.run(shown, capture_output=True, text=True)
    return _find(kind, done.stdout) if done.returncode == 0 else {}


def write(kind: Kind, declared: Declared, path: Path = COUNTS_PATH) -> None:
    """Replace the declarations of that kind in the file, and nothing else."""
    path.write_text(json.dumps({**json.loads(path.read_text()), kind: declared}, indent=1) + "\n")


def _find(kind: Kind, text: str) -> Declared:
    found: Declared = json.loads(text).get(kind, {})
    return found
