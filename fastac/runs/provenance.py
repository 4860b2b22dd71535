"""The environment a run used: versions, commit and memory."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastac.system import peak_resident_bytes

_DISTRIBUTIONS = ("fastac", "torch", "numpy", "gymnasium", "numba", "envpool")
_CHECKOUT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed ones of fastac, its dependencies and EnvPool.

    Read from the packages' metadata: importing torch for its version would take two seconds.
    """
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """Return fastac's own commit, "-dirty" appended if tracked files differ; None outside a git checkout.

    Only a `.git` directly above the package counts: an installed fastac may lie inside a checkout of another
    project. Costs one subprocess, about 5 ms, once.
    """
    if not (_CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # Without optional locks git does not refresh the index, so a run never conflicts with the user's own git.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def peak_rss_mb() -> float | None:
    """Return this process's peak resident memory in megabytes (10**6 bytes); None if the system does not report it."""
    peak = peak_resident_bytes()
    return None if peak is None else peak / 1e6
