"""Compares A2C, A3C and PPO by what they need to reach a return, and by how well they keep it.

    python -m benchmarks.algorithms --seeds 10

Every seed is `fastac train ENV --algo ALGO` with its preset, in a process of its own, for the whole of one budget
of environment steps, evaluated as it goes (greedy, 100 episodes). It is solved at the first evaluation that
reaches the target, whose steps and training seconds count; how stable it is afterwards is the share of the
evaluations after that one that reach the target too. Training seconds of A2C and PPO leave evaluations out;
A3C's are played beside training, on the same cores, and so slow it down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, isinf
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from benchmarks.machine import describe_machine, format_machine
from benchmarks.tables import format_table

_OUTPUT = Path("runs/algorithms.json")  # committed results are replaced only with --output
_ALGOS = ("a2c", "a3c", "ppo")


class Task(NamedTuple):
    """What is to be reached, in how many steps, looked at how often."""

    env: str
    target: float
    budget: int
    eval_every: int


TASKS = (Task("CartPole-v1", 475.0, 300_000, 5_000), Task("LunarLander-v3", 200.0, 300_000, 30_000))


@dataclass(frozen=True, slots=True)
class Seed:
    """One run; what it did not reach is None."""

    env: str
    algo: str
    seed: int
    steps: int | None
    seconds: float | None
    kept: float | None  # share of later evaluations at the target; None where there was no later one
    last_return: float
    sps: float


def run_seed(task: Task, algo: str, seed: int) -> Seed:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        flags = ["--algo", algo, "--seed", str(seed), "--run-dir", str(path), "--json", "--no-tensorboard"]
        flags += ["--total-env-steps", str(task.budget), "--eval-every", str(task.eval_every)]
        command = [sys.executable, "-m", "fastac", "train", task.env, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        summary = json.loads(done.stdout.splitlines()[-1])
        rows = [json.loads(line) for line in (path / "evaluations.jsonl").read_text().splitlines()]
    return judge(task, algo, seed, rows, summary["sps"])


def judge(task: Task, algo: str, seed: int, evaluations: Sequence[dict[str, Any]], sps: float) -> Seed:
    """Read one run's evaluations."""
    reached = [row["mean_return"] >= task.target for row in evaluations]
    last = evaluations[-1]["mean_return"]
    if not any(reached):
        return Seed(task.env, algo, seed, None, None, None, last, sps)
    first = reached.index(True)
    later = reached[first + 1 :]
    row = evaluations[first]
    return Seed(task.env, algo, seed, row["env_steps"], row["wall_s"], mean(later) if later else None, last, sps)


def format_seeds(task: Task, seeds: Sequence[Seed]) -> str:
    """A row per algorithm: medians, the worst in brackets; a seed that did not solve is slower than all."""
    rows = []
    for algo in _ALGOS:
        mine = [s for s in seeds if (s.env, s.algo) == (task.env, algo)]
        if not mine:
            continue
        kept = [s.kept for s in mine if s.kept is not None]
        rows.append(
            [
                algo.upper(),
                f"{sum(s.steps is not None for s in mine)} of {len(mine)}",
                _spread([s.steps for s in mine], ",.0f"),
                _spread([s.seconds for s in mine], ",.2f"),
                f"{mean(kept):.0%}" if kept else "-",
                f"{median(s.last_return for s in mine):.0f}",
                f"{median(s.sps for s in mine):,.0f}",
            ]
        )
    head = [f"{task.env} to {task.target:g}", "solved", "steps", "seconds", "stays", "last return", "steps/s"]
    return format_table(head, rows)


def _spread(costs: Sequence[float | None], form: str) -> str:
    known = [inf if cost is None else cost for cost in costs]
    return " / ".join("-" if isinf(cost) else format(cost, form) for cost in (median(known), max(known)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run all seeds, print the tables, write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algorithms", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 on")
    parser.add_argument("--env", choices=[task.env for task in TASKS], help="default: all of them")
    parser.add_argument("--algo", choices=_ALGOS, help="default: all of them")
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    options = parser.parse_args(argv)
    machine = describe_machine(torch_threads=1)
    seeds: list[Seed] = []
    for task in (task for task in TASKS if options.env in (None, task.env)):
        for number in range(options.seeds):
            for algo in (algo for algo in _ALGOS if options.algo in (None, algo)):  # by turns: the machine changes
                seeds.append(run_seed(task, algo, number))
                print(json.dumps(asdict(seeds[-1])), flush=True)
        print(f"\n{format_seeds(task, seeds)}\n", flush=True)
    print(format_machine(machine))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(f"  {json.dumps(asdict(seed))}" for seed in seeds)
    command = f"python -m benchmarks.algorithms --seeds {options.seeds}"
    head = json.dumps({"command": command, "machine": machine}, indent=1).removesuffix("\n}")
    options.output.write_text(f'{head},\n "seeds": [\n{rows}\n ]\n}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
