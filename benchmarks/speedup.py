"""How much sooner do two A3C workers reach a target than one? Each seed is trained with one and then with two.

    python -m benchmarks.speedup
    python -m benchmarks.speedup CartPole-v1:a3c --seeds 20 --output runs/speedup.json

As in Table 2 of Mnih et al. 2016, arXiv 1602.01783: training seconds until the preset's target. Every run is a fresh
process, see `benchmarks.solve`. Batched environments are evaluated every 2,000 steps: with the default of 5,000 and
more, runs of 10,000 steps would be told apart by the evaluations' times alone. A run that does not reach the target
counts as slower than all that do. By default, all presets of A3C on small environments.

Results are kept by preset in a file; what is not measured anew stays in it. `--table` prints that file's table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isinf
from pathlib import Path
from statistics import median

from benchmarks import solve
from benchmarks.machine import describe_machine, format_machine
from benchmarks.seed_results import parse, save
from benchmarks.tables import format_table
from fastac.build import is_batched
from fastac.presets import Preset
from fastac.presets.classic import CLASSIC

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
    """One preset over seeds: its target, its flags, the machine, and what each seed came to."""

    target: float
    flags: str
    machine: str
    seeds: tuple[Pair, ...]


def flags_of(preset: Preset) -> list[str]:
    """Return the flags of both runs, without the number of workers."""
    every = ["--eval-every", str(EVERY)] if is_batched(preset.make().env, None) else []
    return ["--preset", preset.name, *every]


def run_pair(preset: Preset, seed: int, timeout_s: float = solve.DEFAULT_TIMEOUT_S) -> tuple[solve.Result, ...]:
    """Train a seed with one worker, then with two."""
    flags, target = flags_of(preset), preset.reaches
    assert target is not None
    return tuple(
        solve.run_seed(solve.train_command([*flags, "--workers", str(n)], preset.env_id, target), seed, timeout_s)
        for n in WORKERS
    )


def measure(preset: Preset, seeds: Sequence[int], machine: str) -> Speedup:
    """Train a preset with some seeds, one after the other."""
    pairs = []
    for seed in seeds:
        one, two = run_pair(preset, seed)
        for result in (one, two):
            if result.failure is not None:
                raise RuntimeError(f"{preset.env_id}:{preset.name}, seed {seed}: {result.failure}")
        pairs.append(
            Pair(
                seed,
                (one.train_s if one.solved else None, two.train_s if two.solved else None),
                (one.env_steps if one.solved else None, two.env_steps if two.solved else None),
            )
        )
        print(f"{preset.env_id}, {preset.name}: {pairs[-1]}", flush=True)
    assert preset.reaches is not None
    return Speedup(preset.reaches, " ".join(flags_of(preset)), machine, tuple(pairs))


def ratio_of_medians(seeds: Sequence[Pair]) -> float:
    """Return median seconds with one worker over those with two; NaN if either is of runs that did not get there."""
    one, two = (_median([pair.train_s[n] for pair in seeds]) for n in range(len(WORKERS)))
    return float("nan") if isinf(one) or isinf(two) else one / two


def _median(costs: Sequence[float | None]) -> float:
    return median(inf if cost is None else cost for cost in costs)


def format_speedup(found: Mapping[str, Speedup]) -> str:
    """Return two rows per preset: one worker and two."""
    rows = []
    for name, speedup in found.items():
        for n, workers in enumerate(WORKERS):
            seconds = [pair.train_s[n] for pair in speedup.seeds]
            steps = _median([pair.env_steps[n] for pair in speedup.seeds])
            middle = _median(seconds)
            rows.append(
                (
                    name.replace(":", ", "),
                    f"{speedup.target:g}",
                    str(workers),
                    f"{sum(s is not None for s in seconds)} of {len(seconds)}",
                    "-" if isinf(middle) else f"{middle:.3g}",
                    "-" if None in seconds else f"{max(s for s in seconds if s is not None):.3g}",
                    "-" if isinf(steps) else f"{steps:,.0f}",
                    "" if n == 0 else f"{ratio_of_medians(speedup.seeds):.2f}x",
                )
            )
    head = ("preset", "target", "workers", "reached", "s to it", "worst", "env steps", "faster")
    return format_table(head, rows)


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
    options = parse(argv, __doc__, choose, RESULTS, seeds=20)
    found = load(options.output)
    if not options.table:
        machine = format_machine(describe_machine(torch_threads=1))
        print(machine, flush=True)
        for name, preset in options.chosen.items():
            seeds = range(options.first_seed, options.first_seed + options.seeds)
            found[name] = measure(preset, seeds, machine)
            save(options.output, found)
            print(format_speedup({name: found[name]}), flush=True)
    print(format_speedup(found))


if __name__ == "__main__":
    main()
