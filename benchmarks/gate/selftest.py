"""Tests the gate itself: equal trees must pass, and a slowdown of a fifth must fail, every time.

Each run is the gate's own measurement with as few slices as `--quick` takes, by new processes, on copies of the
working tree; in the slowed copies the update, or the collector, is busy for another fifth of its own time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.gate import compare
from benchmarks.gate.trees import ROOT, export_working_tree, inject_slowdown
from benchmarks.machine import describe_machine
from benchmarks.tables import format_table

RESULT_PATH = ROOT / "benchmarks" / "results" / "gate.json"
SHARE = 0.2
SLOWED = ("update", "collector")


class Run(NamedTuple):
    slowed: str | None  # the part; None for equal trees
    passed: bool
    twice: bool  # measured once more, because something seemed slower
    failed_parts: list[str]
    ratios: dict[str, dict[str, float]]  # of the first measurement, by part and workload

    @property
    def as_expected(self) -> bool:
        return self.passed if self.slowed is None else self.slowed in self.failed_parts


def run_selftest(equal: int, slowed: int, slices: int) -> Iterator[Run]:
    """Yield each run; the cases take turns, so that no hour of the machine is all of one case."""
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        export_working_tree(ROOT, base)
        trees: dict[str | None, Path] = {part: Path(folder) / str(part) for part in (None, *SLOWED)}
        for part, tree in trees.items():
            export_working_tree(ROOT, tree)
            if part is not None:
                inject_slowdown(tree, part, SHARE)
        for index in range(max(equal, slowed)):
            for part, tree in trees.items():
                if index < (equal if part is None else slowed):
                    yield _summarize(part, compare.judge(partial(compare.compare, base, tree), slices))


def _summarize(slowed: str | None, verdict: compare.Verdict) -> Run:
    ratios: dict[str, dict[str, float]] = {}
    for c in verdict.first.comparisons:
        ratios.setdefault(c.part, {})[c.workload] = round(c.ratio, 4)
    failed = sorted({c.part for c in verdict.slower})
    return Run(slowed, verdict.passed, bool(verdict.again), failed, ratios)


def format_runs(runs: Sequence[Run]) -> str:
    """Two tables: how far apart equal trees seem, and whether slowdowns are seen."""
    equal = [run for run in runs if run.slowed is None]
    parts = [(part, compare.MARGINS[part], _ratios(equal, part)) for part in compare.MARGINS]
    first = format_table(
        ("A against A: HEAD over base", "median", "lowest", "highest", "margin"),
        [(part, *_spread(ratios), f"{1 + margin:.2f}") for part, margin, ratios in parts if ratios],
    )
    passed, twice = sum(run.passed for run in equal), sum(run.twice for run in equal)
    rows = []
    for part in SLOWED:
        mine = [run for run in runs if run.slowed == part]
        if mine:
            seen = f"{sum(run.as_expected for run in mine)} of {len(mine)}"
            rows.append((f"{part} slowed by {SHARE:.0%}", seen, *_spread(_ratios(mine, part))))
    second = format_table(("HEAD over base in that part", "fails", "median", "lowest", "highest"), rows)
    return f"{first}\n\nA against A passes {passed} of {len(equal)} times; {twice} were measured twice.\n\n{second}"


def _ratios(runs: Sequence[Run], part: str) -> list[float]:
    return [ratio for run in runs for ratio in run.ratios[part].values()]


def _spread(ratios: Sequence[float]) -> tuple[str, str, str]:
    return f"{median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}"


def write(path: Path, runs: Sequence[Run], slices: int) -> None:
    """One line per run, so that a diff of the committed file reads."""
    head: dict[str, Any] = {
        "machine": describe_machine(torch_threads=1),
        "slices": slices,
        "margins": compare.MARGINS,
        "slowdown": SHARE,
    }
    lines = ",\n".join(f"  {json.dumps(run._asdict())}" for run in runs)
    path.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n ]\n}}\n')
