"""Runs commands in forked processes, which start in milliseconds and may be killed, hang or crash (Linux).

Forking is safe here because the process that forks has no threads: nothing has been computed in it.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing.util
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fastac.runs.provenance import git_commit


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process has ended.

    Attributes:
        code: its exit code, the negative number of the signal that ended it, or None where it hung and was killed.
        out: what it wrote to stdout.
        err: what it wrote to stderr.
    """

    code: int | None
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line on stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


def prepare() -> None:
    """Import what every command needs, so that forked processes have it."""
    for name in ("fastac.api", "fastac.cli"):
        import_module(name)
    git_commit()  # asks git once


def run_forked(work: Callable[[], int], folder: Path, timeout_s: float, kill_after_s: float | None = None) -> Ended:
    """Do `work` in a process with a group and a folder for temporary files of its own; return how it ended.

    Args:
        work: returns the exit code.
        folder: for its output and its temporary files.
        timeout_s: it hangs after so long.
        kill_after_s: when to kill it, alone; None for never.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / "stdout", folder / "stderr"
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _live(work, folder, out, err)
    code = _wait(pid, timeout_s if kill_after_s is None else kill_after_s)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        code = _wait(pid, timeout_s) if kill_after_s is not None else None
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return Ended(code, out.read_text(errors="replace"), err.read_text(errors="replace"))


def _live(work: Callable[[], int], folder: Path, out: Path, err: Path) -> None:
    """Do `work`, and leave without what the process was forked from has to do when it ends."""
    code = 1
    atexit._clear()  # what the process that forks has to do in the end, such as deleting temporary folders
    try:
        os.setsid()
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
            multiprocessing.util._exit_function()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, timeout_s: float) -> int | None:
    """Return the exit code of a child, or None where it has not ended in time."""
    ends, pause_s = time.monotonic() + timeout_s, 0.001
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        left_s = ends - time.monotonic()
        if left_s <= 0.0:
            return None
        time.sleep(min(pause_s, left_s))
        pause_s = min(0.02, 2.0 * pause_s)


def in_shards(number: int, jobs: int, do: Callable[[int], dict[str, object]]) -> list[dict[str, object]]:
    """Do jobs 0 to `number` - 1 in `jobs` forked processes, one after the other in each; return what they return."""
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for shard in range(jobs):
            pid = os.fork()
            if pid == 0:
                _do_shard(range(shard, number, jobs), Path(folder, str(shard)), do)
            pids.append(pid)
        failed = [pid for pid in pids if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0]
        if failed:
            raise RuntimeError(f"{len(failed)} of {jobs} processes failed")
        lines = [line for path in Path(folder).iterdir() for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda row: row["job"])


def _do_shard(numbers: Sequence[int], path: Path, do: Callable[[int], dict[str, object]]) -> None:
    code = 1
    try:
        with path.open("w") as file:
            for job in numbers:
                file.write(json.dumps({"job": job, **do(job)}) + "\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def publish(page: str, rows: list[dict[str, object]], output: Path) -> int:
    """Write a campaign's page and print it; return the exit code, 1 if anything was wrong."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page)
    print(f"\n{page}", end="")
    return 1 if any(row["wrong"] for row in rows) else 0
