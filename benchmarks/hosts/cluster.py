"""Hosts as torchrun sees them: an agent in each namespace, its workers, and a store in a process of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.hosts.network import ADDRESSES, inside
from fastac.runs.checkpoint import find_checkpoint, load_checkpoint

PORT = 29400
BEGUN = "host 0 of"  # in the log of a host that has just begun to train, or to train again
_ENVIRONMENT = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
_RENDEZVOUS = "is_host=0,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"


@dataclass
class Host:
    """One host: its namespace, and the agent that runs in it.

    Attributes:
        number: 0 or 1.
        words: what follows `fastac` on its command line.
        folder: its working directory.
        log: where its output goes.
        cores: those that it may use, as taskset takes them; None: all.
    """

    number: int
    words: Sequence[str]
    folder: Path
    log: Path
    nodes: str = "1:2"
    cores: str | None = None
    agent: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the agent; its output is appended to the log."""
        launch = [
            *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={self.nodes}", "--nproc-per-node=1"),
            *("--rdzv-id=bench", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}"),
            *(f"--rdzv-conf={_RENDEZVOUS}", f"--local-addr={ADDRESSES[self.number]}", "--max-restarts=100"),
        ]
        pinned = [] if self.cores is None else ["taskset", "-c", self.cores]
        command = inside(self.number, [*pinned, *launch, "-m", "fastac", *self.words])
        with self.log.open("ab") as out:
            self.agent = subprocess.Popen(
                command, cwd=self.folder, stdout=out, stderr=out, env=_ENVIRONMENT, start_new_session=True
            )

    @property
    def processes(self) -> list[int]:
        """The agent and everything below it."""
        assert self.agent is not None
        parents = dict(_parents())
        found = [self.agent.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def kill(self) -> None:
        """Kill everything of this host at once."""
        for pid in self.processes:
            _send(pid, signal.SIGKILL)
        self.wait()

    def kill_worker(self) -> None:
        """Kill the process that the agent has started."""
        _send(self.processes[1], signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the agent to end, as a cluster does."""
        assert self.agent is not None
        self.agent.terminate()
        self.wait()

    @property
    def is_running(self) -> bool:
        """Whether the agent has not ended."""
        return self.agent is not None and self.agent.poll() is None

    def wait(self, timeout_s: float = 300.0) -> int:
        """Wait until the agent has ended; return its exit code."""
        assert self.agent is not None
        return self.agent.wait(timeout_s)

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""


@contextmanager
def store() -> Iterator[None]:
    """Hold the rendezvous store in a process of its own, on the first host."""
    command = [sys.executable, "-m", "fastac", "hosts", "--serve", f"{ADDRESSES[0]}:{PORT}"]
    holder = subprocess.Popen(inside(0, command), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        holder.kill()
        holder.wait()


def wait_for(hosts: Sequence[Host], count: int, timeout_s: float = 120.0) -> float:
    """Wait until training has begun `count` times on any host; return when."""
    deadline = time.monotonic() + timeout_s
    while sum(host.text.count(BEGUN) for host in hosts) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no host has begun for the {count}th time within {timeout_s:g} s")
        time.sleep(0.02)
    return time.monotonic()


def left_over(run_dir: Path) -> list[int]:
    """Return the processes that still name a run directory."""
    found = []
    for pid, _ in _parents():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run_dir).encode() in words:
            found.append(pid)
    return found


def digest(run_dir: Path) -> str:
    """Return a digest of all that a run has learned and continues from, without times of the clock."""
    state = load_checkpoint(find_checkpoint(run_dir, "last")).state
    found = hashlib.sha256()
    _add(found, {name: state[name] for name in ("training", "tracker")})
    return found.hexdigest()[:12]


def _add(found: hashlib._Hash, tree: Mapping[str, object]) -> None:
    for name in sorted(tree):
        value = tree[name]
        if name in ("phases", "train_wall_s"):
            continue
        if isinstance(value, Mapping):
            _add(found, value)
        else:
            found.update(name.encode() + (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()))


def _parents() -> Iterator[tuple[int, int]]:
    """Yield every process and its parent."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            yield int(entry.name), int(stat.rpartition(")")[2].split()[1])


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
