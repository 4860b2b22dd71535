"""Runs that are small, processes to run them in, and what to compare of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import fastac
from fastac.cli import main

# Enough of a run to save, resume and evaluate; a fraction of a second.
SMALL = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (8,), "eval_every": 0, "eval_episodes": 2, "tensorboard": False}
SMALL_FLAGS = (
    *("--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "8"),
    *("--eval-every", "0", "--eval-episodes", "2", "--no-tensorboard"),
)
# What differs between two runs that did the same.
CLOCKS = {"train_wall_s", "eval_wall_s", "total_wall_s", "wall_s", "sps", "sps_window", "phases", "sha256", "run_id"}


def spawn(work: Callable[..., None], *args: object, **kwargs: object) -> BaseProcess:
    """Start a process that shares nothing with this one; a fork server, so that only the first imports torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([])  # nothing but what `conftest` adds
    process = context.Process(target=work, args=args, kwargs=kwargs)
    process.start()
    return process


def spawn_main(words: list[str], folder: Path, prepare: Callable[[], None] | None = None) -> BaseProcess:
    """Start the `fastac` command in a process; `folder` gets its `stdout` and `stderr`."""
    return spawn(_run_main, words, folder, prepare)


def _run_main(words: list[str], folder: Path, prepare: Callable[[], None] | None) -> None:
    warnings.simplefilter("error")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if prepare is not None:
        prepare()
    sys.exit(main(words))


def train_and_wait(env: str, run_dir: Path, last_iteration: int, **settings: object) -> None:
    """Train until an iteration, then leave a mark and wait to be killed."""
    warnings.simplefilter("error")
    for report in fastac.start(env, run_dir=run_dir, **settings):
        if report.iteration == last_iteration:
            (run_dir / "mark").touch()
            time.sleep(600)


def train_past_a_best(run_dir: Path, **settings: object) -> None:
    """Train with A3C until an evaluated policy is saved, and on to a row on disk after it; then wait to be killed."""
    warnings.simplefilter("error")
    session = fastac.start("CartPole-v1", "a3c", run_dir=run_dir, **settings)
    for _ in session:
        saved, rows = checkpoints(run_dir), read_whole_rows(run_dir / "progress.jsonl")  # written once a second
        if saved and rows and rows[-1]["env_steps"] > int(saved[-1].name.removeprefix("step-")):
            (run_dir / "mark").touch()
            time.sleep(600)


def wait_for(condition: Callable[[], object], process: BaseProcess) -> None:
    """Poll until something has happened in a process."""
    while not condition():
        assert process.is_alive(), f"the process ended first, with code {process.exitcode}"
        time.sleep(0.01)


def train_until_killed(env: str, run_dir: Path, last_iteration: int, **settings: object) -> None:
    """Train in another process, which dies by `kill -9` after an iteration."""
    process = spawn(train_and_wait, env, run_dir, last_iteration, **settings)
    wait_for((run_dir / "mark").exists, process)
    process.kill()
    process.join()
    (run_dir / "mark").unlink()


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_whole_rows(path: Path) -> list[dict]:
    """Return the rows of a file that is being written, or whose writer was killed, without a last row in part."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def read_timeless(tree: object) -> object:
    """Return JSON data without what the clock says."""
    if isinstance(tree, dict):
        return {key: read_timeless(value) for key, value in tree.items() if key not in CLOCKS}
    return [read_timeless(item) for item in tree] if isinstance(tree, list) else tree


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("checkpoints/step-*"))


def last_env_steps(run_dir: Path) -> int:
    return int(checkpoints(run_dir)[-1].name.removeprefix("step-"))


def read_state(run_dir: Path) -> tuple[bytes, object]:
    """Return the last checkpoint: the bytes of its arrays, and the rest without clocks."""
    last = checkpoints(run_dir)[-1]
    return (last / "state.safetensors").read_bytes(), read_timeless(json.loads((last / "state.json").read_text()))


def read_records(run_dir: Path) -> list[list[object]]:
    """Return all rows of progress and evaluation, without clocks."""
    return [[read_timeless(row) for row in read_rows(path)] for path in sorted(run_dir.glob("*.jsonl"))]


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Return everything in a folder."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
