"""Measures how soon training reaches a return: `fastac train` as a user runs it, one seed after the other.

    python -m benchmarks.solve --algo a2c --seeds 20
    python -m benchmarks.solve --algo ppo --env LunarLander-v3 --until 200 --seeds 3

Every seed is a fresh process with the environment's preset. Training seconds are the run's own clock
up to the evaluation that reached the target, without evaluations and start-up. The other two clocks
begin with the process, so imports, evaluations and checkpoints are in them (kernels are compiled
already, as after any first run): seconds to solved end when that evaluation is on disk, total seconds
when the process has ended. A seed that did not solve counts as slower than all that did, so it
moves the median, and the worst is then "not solved". Other flags go to `fastac train` as they are.

It says nothing of what a policy is worth after the target, and a run stops at its first evaluation
that reaches it: with another `--eval-every` the same training counts as another number of steps.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, isinf
from pathlib import Path
from statistics import median
from time import perf_counter, time
from typing import Any

from benchmarks.machine import Machine, describe_machine, format_machine
from benchmarks.tables import format_table
from fastac.studies.stats import median_with_none_last

_RESULTS = Path("runs")  # not the committed results: those are replaced only with --output
_DEFAULT_ENV = "CartPole-v1"
DEFAULT_UNTIL = 475.0
DEFAULT_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Result:
    """One seed; the numbers of a run that did not solve are those it ended with, None if it failed."""

    seed: int
    solved: bool
    train_s: float | None
    env_steps: int | None
    solved_s: float | None
    total_s: float
    eval_return: float | None
    failure: str | None = None


def train_command(flags: Sequence[str], env: str = _DEFAULT_ENV, until: float = DEFAULT_UNTIL) -> list[str]:
    return ["fastac", "train", env, *flags, "--until-return", f"{until:g}"]


def run_seed(words: Sequence[str], seed: int, timeout_s: float) -> Result:
    """Train once in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = str(Path(folder) / "run")
        command = [sys.executable, "-m", *words, "--seed", str(seed), "--json", "--run-dir", run_dir]
        began, began_at = perf_counter(), time()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return _failed(seed, perf_counter() - began, f"no end after {timeout_s:g} s")
        total_s = perf_counter() - began
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            return _failed(seed, total_s, f"exit code {done.returncode}: {last}")
        # An evaluation reaches this file at once, and training stops at the one that reaches the target.
        evaluated_at = Path(run_dir, "evaluations.jsonl").stat().st_mtime
    return _read(seed, evaluated_at - began_at, total_s, json.loads(done.stdout.splitlines()[-1]))


def _failed(seed: int, total_s: float, failure: str) -> Result:
    return Result(seed, False, None, None, None, round(total_s, 3), None, failure)


def _read(seed: int, evaluated_s: float, total_s: float, summary: dict[str, Any]) -> Result:
    solved = bool(summary["solved"])
    return Result(
        seed,
        solved,
        train_s=round(summary["solved_wall_s" if solved else "train_wall_s"], 3),
        env_steps=summary["solved_env_steps" if solved else "env_steps"],
        solved_s=round(evaluated_s, 3) if solved else None,
        total_s=round(total_s, 3),
        eval_return=summary["eval_mean_return"],
    )


def summarize(results: Sequence[Result], cost: str) -> tuple[float, float]:
    """Median and worst of a cost by its name in `Result`; infinite where too few solved."""
    costs = [getattr(result, cost) if result.solved else inf for result in results]
    return median(costs), max(costs)


def ratio_of_medians(over: Sequence[float | None], under: Sequence[float | None]) -> float:
    """Divide the medians of seconds; None is a run that did not solve.

    Raises:
        ValueError: one of the medians is of runs that did not solve.
    """
    one, two = (median_with_none_last(seconds) for seconds in (over, under))
    if one is None or two is None:
        raise ValueError("too few runs solved for a ratio of their medians")
    return one / two


def format_results(results: Sequence[Result]) -> str:
    """How many solved, and median and worst of what it took."""
    solved = [result for result in results if result.solved]
    rows = []
    for title, name, form in (
        ("training seconds", "train_s", ",.2f"),
        ("env steps", "env_steps", ",.0f"),
        ("seconds to solved", "solved_s", ",.2f"),
        ("total seconds", "total_s", ",.2f"),
    ):
        cells = ["not solved" if isinf(cost) else format(cost, form) for cost in summarize(results, name)]
        rows.append([title, *cells])
    table = format_table([f"solved {len(solved)} of {len(results)}", "median", "worst"], rows)
    lost = [f"seed {r.seed}: {r.failure or f'ended at a return of {r.eval_return}'}" for r in results if not r.solved]
    return "\n".join([table, *(["", "Not solved:", *lost] if lost else [])])


def format_json(machine: Machine, command: str, results: Sequence[Result]) -> str:
    """One line per seed, so that a diff of the committed file reads."""
    head = json.dumps({"command": command, "machine": machine}, indent=1).removesuffix("\n}")
    rows = ",\n".join(f"  {json.dumps(asdict(result))}" for result in results)
    return f'{head},\n "seeds": [\n{rows}\n ]\n}}\n'


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.solve", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--algo", default="a2c")
    parser.add_argument("--env", default=_DEFAULT_ENV)
    parser.add_argument("--until", type=float, default=DEFAULT_UNTIL, help="greedy mean return over 100 episodes")
    parser.add_argument("--seeds", type=int, default=20, help="how many, from 0 on")
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="seconds for one seed, which then failed"
    )
    parser.add_argument("--output", type=Path, help="default: runs/solve-<algo>.json")
    options, more = parser.parse_known_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}, expected at least 1")
    if more and options.output is None:
        parser.error(f"with flags of their own ({shlex.join(more)}) results need a file of their own: give --output")
    return options, more


def main(argv: Sequence[str] | None = None) -> int:
    """Run all seeds, print the table, write the file; exit 1 if any seed did not solve."""
    options, more = _parse(argv)
    words = train_command(["--algo", options.algo, *more], options.env, options.until)
    # Now, as the runs' own load would be named otherwise; a session sets one thread by itself.
    machine = describe_machine(torch_threads=1)
    results = []
    for seed in range(options.seeds):
        result = run_seed(words, seed, options.timeout)
        results.append(result)
        took = f"{result.env_steps} env steps, {result.train_s} s of training, {result.total_s} s in total"
        print(
            f"seed {seed}: {result.failure or ('solved' if result.solved else 'NOT SOLVED') + ', ' + took}", flush=True
        )
    command = f"{shlex.join(words)} --seed 0..{options.seeds - 1}"
    print(f"\n`{command}`\n\n{format_results(results)}\n\n{format_machine(machine)}")
    env = "" if options.env == _DEFAULT_ENV else options.env.replace("/", "_") + "-"
    output = options.output or _RESULTS / f"solve-{env}{options.algo}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(format_json(machine, command, results))
    print(f"\nEvery seed's numbers are in {output}")
    return 0 if all(result.solved for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
