"""How much sooner do two A3C workers reach a target than one? Each seed is trained with one and then with two.

    python -m benchmarks.speedup
    python -m benchmarks.speedup CartPole-v1:a3c --seeds 20 --output runs/speedup.json

As in Table 2 of Mnih et al. 2016, arXiv 1602.01783: training seconds until the preset's target. Every run is a fresh
process, see `benchmarks.solve`. In batched environments an evaluation is due every 2,000 steps; the process that
watches looks every 10 ms, so smaller differences than that say nothing. A run that does not reach the target counts as
slower than all that do. By default, all presets of A3C on small environments.

Results are kept by preset in a file; what is not measured anew stays in it. `--table` prints that file's table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks import solve
from benchmarks.seed_results import parse, run
from benchmarks.tables import format_table
from fastac.build import is_batched
from fastac.presets import Preset
from fastac.presets.classic import CLASSIC
from fastac.studies.stats import median_with_none_last

RESULTS = Path("benchmarks/results/speedup.json")
EVERY = 2_000  # environment steps between evaluations of batched environments
WORKERS = (1, 2)


@dataclass(frozen=True, slots=True)
class Pair:
    """One seed, with one worker and with two.

    Attributes:
        seed: which.
        train_s: seconds of training until the target; None if it was not reached.
        env_steps: steps of all workers until then.
    """

    seed: int
    train_s: tuple[float | None, float | None]
    env_steps: tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class Speedup:
    """One preset over seeds: its target, its budget, its flags, the machine, and what each seed came to."""

    target: float
    env_steps: int
    flags: str
    machine: str
    seeds: tuple[Pair, ...]


def flags_of(preset: Preset) -> list[str]:
    """Return the flags of both runs, without the number of workers."""
    every = ["--eval-every", str(EVERY)] if is_batched(preset.make().env, None) else []
    return ["--preset", preset.name, *every]


def run_pair(preset: Preset, seed: int) -> tuple[solve.Result, solve.Result]:
    """Train a seed with one worker, then with two.

    Raises:
        SystemExit: a run failed.
    """
    assert preset.reaches is not None
    results = []
    for workers in WORKERS:
        flags = [*flags_of(preset), "--workers", str(workers)]
        words = solve.train_command(flags, preset.env_id, preset.reaches)
        result = solve.run_seed(words, seed, solve.DEFAULT_TIMEOUT_S)
        if result.failure is not None:
            raise SystemExit(f"{preset.env_id}:{preset.name}, seed {seed}, {workers} worker(s): {result.failure}")
        results.append(result)
    one, two = results
    return one, two


def measure(preset: Preset, seeds: int, first_seed: int, machine: str) -> Speedup:
    """Train a preset with some seeds, one after the other."""
    assert preset.reaches is not None
    pairs = []
    for seed in range(first_seed, first_seed + seeds):
        one, two = run_pair(preset, seed)
        seconds = (one.train_s if one.solved else None, two.train_s if two.solved else None)
        steps = (one.env_steps if one.solved else None, two.env_steps if two.solved else None)
        pairs.append(Pair(seed, seconds, steps))
        print(f"{preset.env_id}, {preset.name}: {pairs[-1]}", flush=True)
    budget = preset.make().run.total_env_steps
    return Speedup(preset.reaches, budget, " ".join(flags_of(preset)), machine, tuple(pairs))


def format_speedup(found: Mapping[str, Speedup]) -> str:
    """Return two rows per preset: one worker and two."""
    rows = []
    for name, speedup in found.items():
        times = [[pair.train_s[n] for pair in speedup.seeds] for n in range(len(WORKERS))]
        for n, workers in enumerate(WORKERS):
            solved = [s for s in times[n] if s is not None]
            all_solved = len(solved) == len(times[n])
            middle = median_with_none_last(times[n])
            steps = median_with_none_last([pair.env_steps[n] for pair in speedup.seeds])
            rows.append(
                (
                    name.replace(":", ", "),
                    f"{speedup.target:g}",
                    str(workers),
                    f"{len(solved)} of {len(times[n])}",
                    "-" if middle is None else f"{middle:.3g}",
                    f"{mean(solved):.3g}" if all_solved else "-",
                    f"{max(solved):.3g}" if all_solved else "-",
                    "-" if steps is None else f"{steps:,.0f}",
                    _faster(*times) if n else "",
                )
            )
    head = ("preset", "target", "workers", "reached", "median s", "mean", "worst", "env steps", "faster, by the means")
    return format_table(head, rows)


def _faster(one: Sequence[float | None], two: Sequence[float | None]) -> str:
    """Say how many times two workers are faster, by the medians and by the means."""
    try:
        by_medians = f"{solve.ratio_of_medians(one, two):.2f}x"
    except ValueError:
        return "-"
    means = [mean(s for s in times if s is not None) for times in (one, two) if None not in times]
    return f"{by_medians}, {means[0] / means[1]:.2f}x" if len(means) == len(WORKERS) else by_medians


def load(path: Path) -> dict[str, Speedup]:
    """Return what a file holds; nothing if it is not there."""
    if not path.exists():
        return {}
    return {
        name: Speedup(
            **{
                **entry,
                "seeds": tuple(
                    Pair(seed["seed"], tuple(seed["train_s"]), tuple(seed["env_steps"])) for seed in entry["seeds"]
                ),
            }
        )
        for name, entry in json.loads(path.read_text()).items()
    }


def choose(names: Sequence[str]) -> dict[str, Preset]:
    """Return presets by `ENV:NAME`; without names all of A3C on small environments.

    Raises:
        ValueError: there is no such preset of A3C.
    """
    known = {f"{one.env_id}:{one.name}": one for one in CLASSIC if one.reaches and one.make().algo.has_async_workers}
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not a preset of A3C, expected one of: {', '.join(known)}")
    return {name: known[name] for name in names or known}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the presets, keep what they came to, and print the table."""
    run(parse(argv, __doc__, choose, RESULTS, seeds=20), load, measure, format_speedup)


if __name__ == "__main__":
    main()
