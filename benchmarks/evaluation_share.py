"""Measures what evaluations take of whole runs, as a user starts them: `fastac train ENV` with default settings.

    python -m benchmarks.evaluation_share
    python -m benchmarks.evaluation_share --only CartPole --output benchmarks/results/evaluation-share.txt

Every row is a fresh process. Seconds of the whole command go from its start to its exit; those of training and of
evaluation are the run's own. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from benchmarks.machine import describe_machine, format_machine
from benchmarks.tables import format_table

_HERE = "benchmarks.evaluation_share"


class Slow(gym.Env):
    """A simulator whose step takes 5 ms, without a preset; episodes of 200 steps."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)
    step_s, length = 0.005, 200

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None):
        super().reset(seed=seed)
        self._steps = 0
        return self._look(), {}

    def step(self, action: int):
        if self.step_s:
            time.sleep(self.step_s)
        self._steps += 1
        return self._look(), float(action), False, self._steps == self.length, {}

    def _look(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)


class Long(Slow):
    """Cheap steps, and episodes of 1000 of them."""

    step_s, length = 0.0, 1000


for _kind in (Slow, Long):
    gym.register(f"benchmarks/{_kind.__name__}-v0", entry_point=_kind, max_episode_steps=_kind.length)


@dataclass(frozen=True, slots=True)
class Case:
    """A command, less its first two words."""

    words: str


CASES = (
    Case("CartPole-v1"),
    Case("CartPole-v1 --total-env-steps 1e6"),
    Case("CartPole-v1 --algo ppo"),
    Case("CartPole-v1 --algo a3c"),
    Case("Acrobot-v1"),
    Case("Acrobot-v1 --algo ppo"),
    Case("Pendulum-v1"),
    Case("Pendulum-v1 --algo ppo"),
    Case("LunarLander-v3"),
    Case("LunarLander-v3 --algo ppo"),
    Case("MountainCarContinuous-v0 --algo ppo"),
    Case(f"{_HERE}:benchmarks/Slow-v0 --workers 8 --total-env-steps 60_000"),
    Case(f"{_HERE}:benchmarks/Long-v0"),
    Case("ALE/Pong-v5 --algo ppo --total-env-steps 150_000"),
)


def measure(case: Case) -> list[str]:
    """Run a command and return its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fastac", "train", *case.words.split(), "--json"]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--run-dir", str(Path(folder, "run"))], check=True, capture_output=True, text=True
        )
        total_s = time.perf_counter() - began
        rows = Path(folder, "run", "evaluations.jsonl").read_text().splitlines()
    summary = json.loads(done.stdout.splitlines()[-1])
    train_s, eval_s = summary["train_wall_s"], summary["eval_wall_s"]
    of_run = eval_s / (train_s if summary["algo"] == "a3c" else train_s + eval_s)
    return [
        "fastac train " + case.words.replace(f"{_HERE}:", ""),
        f"{total_s:.1f}",
        f"{train_s:.2f}",
        f"{eval_s:.2f}",
        f"{eval_s / total_s:.1%}",
        f"{of_run:.1%}",
        str(len(rows)),
        str(summary["eval_episodes"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="commands that contain this")
    parser.add_argument("--output", type=Path, help="a file for the table")
    options = parser.parse_args()
    heads = ["command", "whole, s", "training, s", "evaluation, s", "of the whole", "of the run", "times", "last of"]
    rows = []
    for case in CASES:
        if options.only in case.words:
            rows.append(measure(case))
            print(*rows[-1], sep="  ", flush=True)
    text = f"{format_machine(describe_machine())}\npython -m {_HERE}\n\n{format_table(heads, rows)}\n"
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
