"""Does a policy that was solved stay solved?

    python -m benchmarks.stays
    python -m benchmarks.stays --preset a2c-fast --first-seed 100 --seeds 10

Every seed is a fresh process with a preset, trained to the end of its budget and evaluated on the way (greedy, 20
episodes each). A seed stays if its last evaluation is at the target, and at least 95 % of the evaluations of the
second half of its steps are. Training seconds are the run's own clock, without evaluations and start-up. Other flags
go to `fastac train` as they are. It exits with 1 if more than one seed in twenty does not stay.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine, format_machine
from benchmarks.solve import DEFAULT_UNTIL
from benchmarks.tables import format_table

_LEAST_SHARE = 0.95  # of the evaluations of the second half; and of the seeds


@dataclass(frozen=True, slots=True)
class Stay:
    """One seed.

    Attributes:
        seed: which.
        first_env_steps: steps until the first evaluation at the target; infinite if there was none.
        first_train_s: seconds of training until then.
        share: of the evaluations in the second half of the run's steps, the part at the target.
        last: mean return of the last evaluation.
        stays: whether that is at the target, and `share` high enough.
    """

    seed: int
    first_env_steps: float
    first_train_s: float
    share: float
    last: float
    stays: bool


def judge(seed: int, evaluations: Sequence[Mapping[str, float]], until: float) -> Stay:
    """Read a run's `evaluations.jsonl`, which is in order."""
    reached = [row for row in evaluations if row["mean_return"] >= until]
    half = evaluations[-1]["env_steps"] / 2
    late = [row["mean_return"] >= until for row in evaluations if row["env_steps"] > half]
    share, last = sum(late) / len(late), evaluations[-1]["mean_return"]
    first = reached[0] if reached else {"env_steps": inf, "wall_s": inf}
    return Stay(seed, first["env_steps"], first["wall_s"], share, last, last >= until and share >= _LEAST_SHARE)


def train(words: Sequence[str], seed: int, until: float) -> Stay:
    """Train once in a process of its own.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", *words, "--seed", str(seed), "--no-tensorboard", "--run-dir", str(run_dir)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"seed {seed}: exit code {done.returncode}: {done.stderr.strip()}")
        rows = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    return judge(seed, rows, until)


def format_stays(stays: Sequence[Stay], until: float) -> str:
    """A row per seed, and what holds of all of them."""
    rows = [
        [
            str(stay.seed),
            "never" if stay.first_env_steps == inf else f"{stay.first_env_steps:,.0f}",
            "never" if stay.first_train_s == inf else f"{stay.first_train_s:.2f}",
            f"{stay.share:.0%}",
            f"{stay.last:.1f}",
            "yes" if stay.stays else "NO",
        ]
        for stay in stays
    ]
    at = f"{until:g}"
    header = ["seed", f"steps to {at}", "training s", f"later half at {at}", "last evaluation", "stays"]
    steps, seconds = ([getattr(stay, name) for stay in stays] for name in ("first_env_steps", "first_train_s"))
    return "\n".join(
        [
            format_table(header, rows),
            "",
            f"{sum(stay.stays for stay in stays)} of {len(stays)} stay",
            f"steps to the first evaluation at {at}: median {median(steps):,.0f}, most {max(steps):,.0f}",
            f"training seconds until then: median {median(seconds):.2f}, most {max(seconds):.2f}",
        ]
    )


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stays", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--preset", default="a2c")
    parser.add_argument("--until", type=float, default=DEFAULT_UNTIL, help="greedy mean return")
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--total-env-steps", type=int, default=500_000)
    parser.add_argument("--eval-every", type=int, default=10_000)
    parser.add_argument("--eval-episodes", type=int, default=20)
    parser.add_argument("--output", type=Path, help="a file for the table, beside printing it")
    options, more = parser.parse_known_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}, expected at least 1")
    return options, more


def main(argv: Sequence[str] | None = None) -> int:
    """Train all seeds and print the table; exit 1 if more than one seed in twenty does not stay."""
    options, more = _parse(argv)
    budget = ["--total-env-steps", str(options.total_env_steps)]
    looks = ["--eval-every", str(options.eval_every), "--eval-episodes", str(options.eval_episodes)]
    words = ["fastac", "train", options.env, "--preset", options.preset, *budget, *looks, *more]
    machine = describe_machine(torch_threads=1)  # before the runs are a load themselves
    stays = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        stays.append(train(words, seed, options.until))
        print(stays[-1], flush=True)
    command = f"{shlex.join(words)} --seed {stays[0].seed}..{stays[-1].seed}"
    told = f"`{command}`\n\n{format_stays(stays, options.until)}\n\n{format_machine(machine)}\n"
    print(f"\n{told}", end="")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(told)
    return 0 if sum(stay.stays for stay in stays) >= _LEAST_SHARE * len(stays) else 1


if __name__ == "__main__":
    sys.exit(main())
