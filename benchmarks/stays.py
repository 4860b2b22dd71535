"""Does a policy that was solved stay solved? The second number beside the time to the target, for every preset.

    python -m benchmarks.stays
    python -m benchmarks.stays CartPole-v1:a2c CartPole-v1:a3c --seeds 20 --output runs/stays.json

Each seed trains a preset to the end of its budget, on one core (a3c: its workers), with 50 evaluations, the last at the
end, of 100 episodes in batched environments and of 20 in others, by the actions that the preset evaluates with. *Held*
is the share of evaluations at the target among those after the first one there; *end* is the last policy's last
evaluation. By default, every preset of a small environment that has a target.

Results are kept by preset in a file; what is not measured anew stays in it. `--table` prints that file's table.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TypeAlias

import fastac
from benchmarks.seed_results import parse, run
from benchmarks.tables import format_table
from fastac.build import is_batched
from fastac.presets import PRESETS, Preset
from fastac.presets.classic import CLASSIC
from fastac.studies.stats import median_with_none_last

RESULTS = Path("benchmarks/results/stays.json")
EVALUATIONS = 50
MANY, FEW = 100, 20  # episodes of each: batched environments cost next to nothing, others as much as training

Rows: TypeAlias = Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Stay:
    """One seed.

    Attributes:
        seed: which.
        first_env_steps: steps until the first evaluation at the target; None if there was none.
        first_train_s: seconds of training until then.
        held: of the evaluations after that one, the share at the target; 1 if there are none, 0 without a first.
        end: mean return of the last evaluation.
    """

    seed: int
    first_env_steps: float | None
    first_train_s: float | None
    held: float
    end: float


@dataclass(frozen=True, slots=True)
class Stays:
    """One preset over seeds: its target, its budget, the machine that trained it, and what each seed came to."""

    target: float
    env_steps: int
    machine: str
    seeds: tuple[Stay, ...]


def judge(seed: int, evaluations: Rows, target: float) -> Stay:
    """Read a run's `evaluations.jsonl`, which is in order."""
    returns = [row["mean_return"] for row in evaluations]
    first = next((n for n, value in enumerate(returns) if value >= target), None)
    if first is None:
        return Stay(seed, None, None, 0.0, returns[-1])
    later = [value >= target for value in returns[first + 1 :]]
    at = evaluations[first]
    return Stay(seed, at["env_steps"], at["wall_s"], mean(later) if later else 1.0, returns[-1])


def measure(preset: Preset, seeds: int, first_seed: int, machine: str) -> Stays:
    """Train a preset with some seeds, side by side."""
    config = preset.make()
    assert preset.reaches is not None
    total = config.run.total_env_steps
    with tempfile.TemporaryDirectory() as folder:
        fastac.train_seeds(
            preset.env_id,
            preset=preset.name,
            seeds=seeds,
            seed=first_seed,
            run_dir=folder,
            total_env_steps=total,
            eval_every=total // EVALUATIONS,
            eval_episodes=MANY if is_batched(config.env, None) else FEW,
            eval_from_return=None,
            tensorboard=False,
        )
        numbers = range(first_seed, first_seed + seeds)
        stays = tuple(judge(n, _read(Path(folder, f"seed{n}", "evaluations.jsonl")), preset.reaches) for n in numbers)
    return Stays(preset.reaches, total, machine, stays)


def _read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def format_stays(found: Mapping[str, Stays]) -> str:
    """Return a row per preset."""
    rows = []
    for name, stays in found.items():
        first = median_with_none_last([seed.first_train_s for seed in stays.seeds])
        held, ends = [seed.held for seed in stays.seeds], [seed.end for seed in stays.seeds]
        number = len(stays.seeds)
        rows.append(
            (
                name.replace(":", ", "),
                f"{stays.target:g}",
                f"{sum(seed.first_env_steps is not None for seed in stays.seeds)} of {number}",
                "-" if first is None else f"{first:.2f}",
                f"{stays.env_steps:,}",
                f"{mean(held):.1%}, {min(held):.0%}",
                f"{median(ends):.1f}, {min(ends):.1f}",
                f"{sum(end >= stays.target for end in ends)} of {number}",
            )
        )
    head = ("preset", "target", "reached", "s to it", "env steps", "held, worst", "end, worst", "end at it")
    return format_table(head, rows)


def load(path: Path) -> dict[str, Stays]:
    """Return what a file holds; nothing if it is not there."""
    if not path.exists():
        return {}
    data = json.loads(path.read_text())
    return {
        name: Stays(**{**entry, "seeds": tuple(Stay(**seed) for seed in entry["seeds"])})
        for name, entry in data.items()
    }


def choose(names: Sequence[str]) -> dict[str, Preset]:
    """Return presets by `ENV:NAME`; without names all of small environments that have a target.

    Raises:
        ValueError: there is no such preset, or it has no target.
    """
    if not names:
        return {f"{one.env_id}:{one.name}": one for one in CLASSIC if one.reaches is not None}
    known = {f"{one.env_id}:{one.name}": one for one in PRESETS if one.reaches is not None}
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not a preset with a target, expected one of: {', '.join(known)}")
    return {name: known[name] for name in names}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the presets, keep what they came to, and print the table."""
    run(parse(argv, __doc__, choose, RESULTS, seeds=20), load, measure, format_stays)


if __name__ == "__main__":
    main()
