"""Trains public environments that nobody here wrote, each by the command of the guide, for the minutes that it states.

    python -m benchmarks.zoo
    python -m benchmarks.zoo MinAtar FrozenLake --seed 1

Reads the commands from `fastac/guides/public-environments.md`, so that what is measured is what is shown. As many run
side by side as there are cores, with one worker each. Ends with the table of that page: what the best policy reached
over 20 fresh episodes, the env steps, and the seconds of the whole command. What is not installed is left out, and
said.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.machine import describe_machine, format_machine
from benchmarks.tables import format_table
from fastac.cpu import count_cores

EPISODES = 20  # an episode of CarRacing takes 10 s
PAGE = Path(__file__).parents[1] / "fastac/guides/public-environments.md"


@dataclass(frozen=True, slots=True)
class Reached:
    """What one command has come to."""

    command: str
    mean: float
    std: float
    env_steps: int
    wall_s: float


def read_commands() -> list[str]:
    """Return the page's commands in order."""
    return re.findall(r"^    (fastac train .*)$", PAGE.read_text(), re.M)


def is_installed(command: str) -> bool:
    """Return whether the module that a command's environment comes from is there."""
    module, colon, _ = shlex.split(command)[2].partition(":")
    return not colon or find_spec(module.partition(".")[0]) is not None


def train(command: str, seed: int) -> Reached:
    """Run a command and evaluate its best policy.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = [*shlex.split(command)[1:], "--seed", str(seed), "--run-dir", str(run_dir), "--workers", "1"]
        began = time.monotonic()
        _call([*words, "--no-tensorboard"], command)
        wall_s = time.monotonic() - began
        eval_words = ["eval", str(run_dir), "--episodes", str(EPISODES), "--seed", "1", "--json"]
        told = json.loads(_call(eval_words, command).splitlines()[-1])
        steps = json.loads((run_dir / "summary.json").read_text())["env_steps"]
    print(f"{shlex.split(command)[2]}: {told['mean_return']:.2f} after {steps:,} env steps, {wall_s:.0f} s", flush=True)
    return Reached(command, told["mean_return"], told["std_return"], steps, wall_s)


def _call(words: Sequence[str], command: str) -> str:
    done = subprocess.run([sys.executable, "-m", "fastac", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def format_reached(reached: Sequence[Reached]) -> str:
    """Return the table, in the order of the page."""
    rows = []
    for one in reached:
        words = shlex.split(one.command)
        memory = f", {words[words.index('--core') + 1]}" if "--core" in words else ""
        rows.append(
            (
                f"{words[2].rpartition(':')[2]}{memory}",
                words[words.index("--budget-minutes") + 1],
                f"{one.mean:.2f} +- {one.std:.2f}",
                f"{one.env_steps:,}",
                f"{one.wall_s:.0f}",
            )
        )
    return format_table(("environment", "minutes", "return", "env steps", "whole command, s"), rows)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="parts of environments' names; all by default")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    commands = [one for one in read_commands() if not given.only or any(name in one for name in given.only)]
    for command in commands:
        if not is_installed(command):
            print(f"left out, as it is not installed: {shlex.split(command)[2]}")
    print(format_machine(describe_machine()), flush=True)
    with ThreadPoolExecutor(count_cores()) as pool:
        found = list(pool.map(lambda command: train(command, given.seed), filter(is_installed, commands)))
    print(format_reached(found))


if __name__ == "__main__":
    main()
