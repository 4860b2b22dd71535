"""Kills A3C's processes at random, again and again, and counts what survives (Linux).

    python -m benchmarks.faults --workers-killed 50 --parents-killed 20

Every run is `fastac train` in processes of its own. In a run of the first kind one worker is killed by SIGKILL
at a random moment: the run has to reach its budget, to have counted one restart, and to leave no process and
nothing in /dev/shm. In one of the second kind the process that watches the workers is killed: none of the
others may live 5 s later, and the last checkpoint has to resume and reach the budget.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine

_OUTPUT = Path("runs/a3c-faults.json")  # committed results are replaced only with --output
_MARK = "FASTAC_FAULTS"  # in the environment of all processes of a run
_BUDGET = 600_000
_WORKERS = 2
_ALIVE_S = 5.0
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One run.

    Attributes:
        killed: "worker" or "parent".
        after_s: seconds from its first worker to the kill.
        survived: whether all was as it has to be.
        env_steps: that it reached in the end.
        restarts: that its summary counts.
        why: what was not as it has to be.
    """

    killed: str
    after_s: float
    survived: bool
    env_steps: int
    restarts: int
    why: str = ""


class _Run:
    """`fastac train` with a mark on all its processes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.mark, self.path = uuid.uuid4().hex, folder / "run"
        self.out, self.err = folder / "out", folder / "err"
        self._shm = set(os.listdir("/dev/shm"))
        self._seed = seed
        self.main = self._start(
            "train", "CartPole-v1", "--algo", "a3c", "--workers", str(_WORKERS), "--total-env-steps", str(_BUDGET),
            "--checkpoint-every", "20000", "--seed", str(seed), "--run-dir", str(self.path), "--json",
        )  # fmt: skip

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        # Into files: a pipe that the workers have inherited would only end with the last of them.
        command, env = [sys.executable, "-m", "fastac", *words], os.environ | {_MARK: self.mark}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            return subprocess.Popen(command, env=env, stdout=out, stderr=err)

    def processes(self) -> list[int]:
        """All of them that live, the oldest first."""
        marked = f"{_MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = marked in (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # ended meanwhile, or somebody else's
                continue
            if is_ours and _state(folder) != "Z":
                found.append(int(folder.name))
        return sorted(found)

    def wait_workers(self) -> list[int]:
        """Wait until the workers train; return their process ids."""
        progress = self.path / "progress.jsonl"
        wait_for(lambda: progress.exists() and progress.stat().st_size > 0, _TIMEOUT_S)
        return self._workers()

    def _workers(self) -> list[int]:
        # Children of the fork server, which is the only other process that has some.
        parents = {pid: _parent(pid) for pid in self.processes()}
        servers = {parent for parent in parents.values() if parent in parents and parent != self.main.pid}
        return [pid for pid, parent in parents.items() if parent in servers][:_WORKERS]

    def finish(self) -> tuple[dict[str, Any], str]:
        """Wait for its end; return the summary, and what went wrong."""
        try:
            code = self.main.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.main.kill()
            return {}, f"no end after {_TIMEOUT_S:g} s"
        if code != 0:
            return {}, f"exit code {code}: {(self.err.read_text().strip().splitlines() or [''])[-1]}"
        return json.loads(self.out.read_text().splitlines()[-1]), self.left_behind()

    def resume(self) -> tuple[dict[str, Any], str]:
        """Go on from the last checkpoint to the end."""
        self.main = self._start("resume", str(self.path), "--json")
        return self.finish()

    def left_behind(self) -> str:
        """What is left of it 5 s after its first process has ended."""
        wait_for(lambda: not self.processes(), _ALIVE_S)
        alive, leaked = self.processes(), set(os.listdir("/dev/shm")) - self._shm
        left = [f"processes {alive} live"] if alive else []
        return "; ".join(left + ([f"{sorted(leaked)} in /dev/shm"] if leaked else []))


def _state(folder: Path) -> str:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def wait_for(look: Callable[[], object], timeout_s: float) -> None:
    """Look until there is something to see, or time is up."""
    ends = time.monotonic() + timeout_s
    while not look() and time.monotonic() < ends:
        time.sleep(0.02)


def kill_worker(seed: int, chance: random.Random) -> Fault:
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(Path(folder), seed)
        workers = run.wait_workers()
        after_s = chance.uniform(0.0, 1.0)  # of 2 s or more that the budget takes
        time.sleep(after_s)
        os.kill(chance.choice(workers), signal.SIGKILL)
        return _judge("worker", after_s, *run.finish(), restarts=1)


def kill_parent(seed: int, chance: random.Random) -> Fault:
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(Path(folder), seed)
        run.wait_workers()
        wait_for(lambda: list(run.path.glob("checkpoints/*")), _TIMEOUT_S)
        after_s = chance.uniform(0.0, 1.0)
        time.sleep(after_s)
        run.main.kill()
        run.main.wait()
        left = run.left_behind()
        summary, why = run.resume()
        return _judge("parent", after_s, summary, left or why, restarts=0)


def _judge(killed: str, after_s: float, summary: dict[str, Any], why: str, restarts: int) -> Fault:
    counted = summary["asynchrony"]["restarts"] if summary else -1
    reached = summary.get("env_steps", 0)
    if not why and reached < _BUDGET:
        why = f"it ended at {reached} of {_BUDGET} steps"
    if not why and counted != restarts:
        why = f"{counted} restarts, expected {restarts}"
    return Fault(killed, round(after_s, 3), not why, reached, counted, why)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all, write the file; exit 1 if anything did not survive."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers-killed", type=int, default=50, metavar="N")
    parser.add_argument("--parents-killed", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    options = parser.parse_args(argv)
    chance, faults = random.Random(options.seed), []
    for kill, number in ((kill_worker, options.workers_killed), (kill_parent, options.parents_killed)):
        for seed in range(number):
            fault = kill(seed, chance)
            faults.append(fault)
            print(f"{fault.killed} killed after {fault.after_s:.2f} s: {fault.why or 'survived'}", flush=True)
    survived = {kind: sum(f.survived for f in faults if f.killed == kind) for kind in ("worker", "parent")}
    print(
        f"\n{survived['worker']} of {options.workers_killed} runs with a killed worker and {survived['parent']} of "
        f"{options.parents_killed} with a killed parent came through."
    )
    machine = describe_machine(torch_threads=1)
    print(format_machine(machine))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(f"  {json.dumps(asdict(fault))}" for fault in faults)
    head = json.dumps({"command": "python -m benchmarks.faults", "machine": machine}, indent=1).removesuffix("\n}")
    options.output.write_text(f'{head},\n "faults": [\n{rows}\n ]\n}}\n')
    return 0 if all(fault.survived for fault in faults) else 1


if __name__ == "__main__":
    sys.exit(main())
