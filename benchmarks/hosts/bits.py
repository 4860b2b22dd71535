"""Whether a seed gives the same bits however its shards are spread: workers, hosts, and a kill in between."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.hosts.cluster import Host, digest, store, wait_for

_COMMON = ("--no-eval", "--no-tensorboard", "--shards", "4")
_RUNS: dict[str, tuple[str, ...]] = {
    "CartPole A2C": ("CartPole-v1", "--algo", "a2c", "--normalize-obs", "--normalize-reward"),
    "CartPole PPO": ("CartPole-v1", "--algo", "ppo", "--num-envs", "16"),
    "CartPole A2C, LSTM": ("CartPole-v1", "--algo", "a2c", "--core", "lstm"),
    "LunarLander A2C": ("LunarLander-v3", "--algo", "a2c", "--num-envs", "16"),
    "LunarLander PPO": ("LunarLander-v3", "--algo", "ppo", "--num-envs", "16"),
    "Pong A2C, Nature": ("ALE/Pong-v5", "--algo", "a2c", "--encoder", "nature"),
    "Pong PPO, Nature": ("ALE/Pong-v5", "--algo", "ppo", "--encoder", "nature"),
}
_STEPS = {"CartPole": 60_000, "LunarLander": 10_000, "ALE/Pong": 5_000}
_CANNOT_BE_SAVED = ("LunarLander", "ALE/Pong")  # so a kill restarts their episodes


def run(folder: Path, seeds: int) -> Iterator[str]:
    """Yield a line per run: the digest with one worker, and which of the others have it too."""
    yield f"{'':<22}seed  1 worker      2    4    2 hosts x 1  2 hosts x 2  killed on 2, resumed on 1"
    for name, words in _RUNS.items():
        for seed in range(seeds):
            yield _compare(folder, name, (*words, *_COMMON, "--seed", str(seed)))


def _compare(folder: Path, name: str, words: tuple[str, ...]) -> str:
    env_id, seed = words[0], words[-1]
    steps = next(steps for part, steps in _STEPS.items() if env_id.startswith(part))
    words = (*words, "--total-env-steps", str(steps))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    alone = [_train_alone(folder, words, workers) for workers in (1, 2, 4)]
    hosts = [_train_on_hosts(folder, words, workers) for workers in (1, 2)]
    killed = None if env_id.startswith(_CANNOT_BE_SAVED) else _train_killed(folder, words)
    first, *others = alone + hosts
    told = ["yes" if found == first else "NO" for found in others]
    last = "episodes cannot be saved" if killed is None else "yes" if killed == first else "NO"
    return f"{name:<22}{seed:>4}  {first:<12}{told[0]:>4} {told[1]:>4}  {told[2]:>11}  {told[3]:>11}  {last}"


def _train_alone(folder: Path, words: tuple[str, ...], workers: int) -> str:
    run_dir = folder / f"workers{workers}"
    _call("train", *words, "--workers", str(workers), "--run-dir", str(run_dir))
    return digest(run_dir)


def _train_on_hosts(folder: Path, words: tuple[str, ...], workers: int) -> str:
    run_dir = folder / f"hosts{workers}"
    hosts = _make_hosts(folder, run_dir, words, workers)
    with store():
        for host in hosts:
            host.start()
        codes = [host.wait() for host in hosts]
    assert codes == [0, 0], f"exit codes {codes}, see {folder}"
    return digest(run_dir)


def _train_killed(folder: Path, words: tuple[str, ...]) -> str:
    """Train on two hosts, kill both in the middle, and resume on this machine with one worker."""
    run_dir = folder / "killed"
    hosts = _make_hosts(folder, run_dir, (*words, "--checkpoint-minutes", "0.005"), 1)
    with store():
        for host in hosts:
            host.start()
        wait_for(hosts, 1)
        while len(list(run_dir.glob("checkpoints/step-*"))) < 2:
            time.sleep(0.01)
        for host in hosts:
            host.kill()
    assert not (run_dir / "summary.json").exists(), "the run was over before it was killed"
    _call("resume", str(run_dir), "--workers", "1")
    return digest(run_dir)


def _make_hosts(folder: Path, run_dir: Path, words: tuple[str, ...], workers: int) -> list[Host]:
    command = ["train", *words, "--workers", str(workers), "--run-dir", str(run_dir)]
    return [Host(number, command, folder, folder / f"{run_dir.name}-{number}.log", nodes="2") for number in (0, 1)]


def _call(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "fastac", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
