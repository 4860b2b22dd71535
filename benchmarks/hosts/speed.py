"""Two hosts with one worker each over one host with two workers, one core each, side by side in time."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.hosts.cluster import Host, store
from benchmarks.hosts.network import slowed

_COMMON = ("--no-eval", "--no-tensorboard", "--shards", "2")
_RUNS: dict[str, tuple[str, ...]] = {
    "Pong A2C, Nature": ("ALE/Pong-v5", "--algo", "a2c", "--encoder", "nature", "--total-env-steps", "12000"),
    "LunarLander PPO": ("LunarLander-v3", "--algo", "ppo", "--num-envs", "16", "--total-env-steps", "60000"),
    "CartPole A2C, 1024 envs": ("CartPole-v1", "--num-envs", "1024", "--num-steps", "16", "--total-env-steps", "4e6"),
    "CartPole A2C, 64 envs": ("CartPole-v1", "--num-envs", "64", "--num-steps", "16", "--total-env-steps", "4e5"),
}


def run(folder: Path, times: int, rate: str | None, more: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a line per run; `more` are flags of the run on two hosts."""
    with slowed(rate):
        for name, words in _RUNS.items():
            ratios, on_hosts = [], []
            for _ in range(times):
                on_one = _train_on_one(folder, (*words, *_COMMON))
                on_hosts.append(_train_on_two(folder, (*words, *_COMMON, *more)))
                ratios.append(on_hosts[-1] / on_one)
            yield (
                f"{name:<26}{statistics.median(on_hosts):>10,.0f} steps/s   {statistics.median(ratios):.2f} of one "
                f"host ({min(ratios):.2f} to {max(ratios):.2f} in {times})"
            )


def _train_on_one(folder: Path, words: tuple[str, ...]) -> float:
    run_dir = _prepare(folder)
    command = [sys.executable, "-m", "fastac", "train", *words, "--workers", "2", "--run-dir", str(run_dir)]
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
