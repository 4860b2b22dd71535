"""One worker, two workers of one host, and two hosts with one worker each: one core each, one after the other."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.hosts.cluster import Host, store
from benchmarks.hosts.network import slowed
from benchmarks.tables import format_table

_COMMON = ("--no-eval", "--no-tensorboard", "--shards", "2")
_RUNS: dict[str, tuple[str, ...]] = {
    "Pong A2C, Nature": ("ALE/Pong-v5", "--algo", "a2c", "--encoder", "nature", "--total-env-steps", "12000"),
    "LunarLander PPO": ("LunarLander-v3", "--algo", "ppo", "--num-envs", "16", "--total-env-steps", "60000"),
    "CartPole A2C, 1024 envs": ("CartPole-v1", "--num-envs", "1024", "--num-steps", "16", "--total-env-steps", "4e6"),
    "CartPole A2C, 64 envs": ("CartPole-v1", "--num-envs", "64", "--num-steps", "16", "--total-env-steps", "4e5"),
}


@dataclass(frozen=True)
class Scaling:
    """Steps per second of a run, once per round.

    Attributes:
        name: of the run.
        alone: with one worker.
        workers: with two workers on one host.
        hosts: with two hosts of one worker.
    """

    name: str
    alone: list[float] = field(default_factory=list)
    workers: list[float] = field(default_factory=list)
    hosts: list[float] = field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        """Medians, and the median of the ratios within a round."""
        pairs = [hosts / workers for hosts, workers in zip(self.hosts, self.workers, strict=True)]
        rates = [f"{statistics.median(each):,.0f}" for each in (self.alone, self.workers, self.hosts)]
        return [self.name, *rates, f"{statistics.median(pairs):.2f}", f"{min(pairs):.2f} to {max(pairs):.2f}"]


HEADER = ["steps/s", "1 worker", "2 workers", "2 hosts x 1", "hosts over workers", "from round to round"]


def measure(folder: Path, times: int, rate: str | None, more: tuple[str, ...] = ()) -> Iterator[Scaling]:
    """Yield what each run makes; `more` are flags of the run on two hosts."""
    with slowed(rate):
        for name, words in _RUNS.items():
            found = Scaling(name)
            for _ in range(times):
                found.alone.append(_train_on_one(folder, (*words, *_COMMON), 1))
                found.workers.append(_train_on_one(folder, (*words, *_COMMON), 2))
                found.hosts.append(_train_on_two(folder, (*words, *_COMMON, *more)))
            yield found


def run(folder: Path, times: int, rate: str | None, more: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the table of `measure`."""
    rows = [found.cells for found in measure(folder, times, rate, more)]
    yield format_table(HEADER, rows)


def _train_on_one(folder: Path, words: tuple[str, ...], workers: int) -> float:
    run_dir = _prepare(folder)
    command = [sys.executable, "-m", "fastac", "train", *words, "--workers", str(workers), "--run-dir", str(run_dir)]
    subprocess.run(command, capture_output=True, check=True)
    return _read_sps(run_dir)


def _train_on_two(folder: Path, words: tuple[str, ...]) -> float:
    run_dir = _prepare(folder)
    command = ["train", *words, "--workers", "1", "--run-dir", str(run_dir)]
    hosts = [Host(k, command, folder, folder / f"{k}.log", nodes="2", cores=str(k)) for k in (0, 1)]
    with store():
        for host in hosts:
            host.start()
        codes = [host.wait() for host in hosts]
    assert codes == [0, 0], f"exit codes {codes}, see {folder}"
    return _read_sps(run_dir)


def _prepare(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder / "run"


def _read_sps(run_dir: Path) -> float:
    """Return the steps per second of the second half of a run: the first has what is done once."""
    rows = [json.loads(row) for row in (run_dir / "progress.jsonl").read_text().splitlines()]
    middle, last = rows[len(rows) // 2], rows[-1]
    return float((last["env_steps"] - middle["env_steps"]) / (last["train_wall_s"] - middle["train_wall_s"]))
