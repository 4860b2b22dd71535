"""Tests the gate itself: equal trees must pass every time, 10 % more must fail every time, 6 % more mostly.

Each run is the gate's own measurement in as few processes as `--quick` takes, on copies of the working tree; in the
slowed copies the update, or the collector, is busy for a share of its own time. Equal trees are measured in all
workloads, slowed ones in one: a slowdown would be in all three, and three chances would be easier.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.gate import compare
from benchmarks.gate.trees import ROOT, export_head, inject_slowdown
from benchmarks.machine import describe_machine
from benchmarks.tables import format_table
from fastac.tools.gate.measure import MARGINS, Effort, Measured

RESULT_PATH = ROOT / "benchmarks" / "results" / "gate.json"


class Case(NamedTuple):
    part: str | None  # that is slowed; None: equal trees
    share: float  # of its own time
    least: float  # the share of runs that must come out as expected

    @property
    def name(self) -> str:
        return "A against A" if self.part is None else f"{self.part} slowed by {self.share:.0%}"


CASES = (
    Case(None, 0.0, 1.0),
    *(Case(part, share, least) for share, least in ((0.10, 1.0), (0.06, 0.8)) for part in ("update", "collector")),
)


class Run(NamedTuple):
    case: Case
    passed: bool
    pairs: int  # of processes, the most of any workload
    failed_parts: list[str]
    ratios: dict[str, dict[str, float]]  # by part and workload
    sees: float  # the slowdown from which on a part measured in CPU time fails, the median over these

    @property
    def as_expected(self) -> bool:
        return self.passed if self.case.part is None else self.case.part in self.failed_parts


def run_selftest(equal: int, slowed: int, effort: Effort) -> Iterator[Run]:
    """Yield each run; the cases take turns, so that no hour of the machine is all of one case."""
    one = {compare.A2C_64: compare.WORKLOADS[compare.A2C_64]}
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        export_head(base)
        trees = {case: Path(folder) / str(number) for number, case in enumerate(CASES)}
        for case, tree in trees.items():
            export_head(tree)
            if case.part is not None:
                inject_slowdown(tree, case.part, case.share)
        for index in range(max(equal, slowed)):
            for number, (case, tree) in enumerate(trees.items()):
                if case.part is None and index < equal:
                    yield _summarize(case, compare.compare(base, tree, effort))
                # Of two parts that take turns, each is slowed half as often.
                if case.part is not None and index < slowed and (index + number) % 2:
                    yield _summarize(case, compare.compare(base, tree, effort, one))


def _summarize(case: Case, measured: Measured) -> Run:
    ratios: dict[str, dict[str, float]] = {}
    for c in measured.comparisons:
        ratios.setdefault(c.part, {})[c.workload] = round(c.ratio, 4)
    failed = sorted({c.part for c in measured.slower})
    sees = median(c.sees for c in measured.comparisons if c.part != "wall")
    return Run(case, not failed, max(c.pairs for c in measured.comparisons), failed, ratios, round(sees, 4))


def is_worth(runs: Sequence[Run]) -> bool:
    """Return whether equal trees pass, and slowdowns fail, as often as they must."""
    shares = {(run.case.share, run.case.least) for run in runs}
    return all(_count(runs, share)[0] >= least * _count(runs, share)[1] for share, least in shares)


def _count(runs: Sequence[Run], share: float) -> tuple[int, int]:
    """Return how many runs of a slowdown came out as expected, and of how many, whichever part was slowed."""
    found = [run.as_expected for run in runs if run.case.share == share]
    return sum(found), len(found)


def format_runs(runs: Sequence[Run]) -> str:
    """Two tables: how far apart equal trees seem, and whether slowdowns are seen."""
    equal = [run for run in runs if run.case.part is None]
    first = format_table(
        ("A against A: HEAD over base", "median", "lowest", "highest", "margin"),
        [(part, *_spread(_ratios(equal, part)), f"{1 + margin:.3f}") for part, margin in MARGINS.items() if equal],
    )
    passed, total = _count(runs, 0.0)
    pairs, sees = [run.pairs for run in equal], median(run.sees for run in equal)
    told = (
        f"A against A passes {passed} of {total} times, in {median(pairs):g} pairs of processes (median; the most "
        f"{max(pairs)}). A part measured in CPU time fails from {sees:.1%} on (median)."
    )
    rows = []
    for case in CASES:
        mine = [run for run in runs if run.case == case]
        if mine and case.part is not None:
            seen = f"{sum(run.as_expected for run in mine)} of {len(mine)}"
            rows.append((case.name, seen, *_spread(_ratios(mine, case.part))))
    second = format_table(("HEAD over base in that part", "fails", "median", "lowest", "highest"), rows)
    return f"{first}\n\n{told}\n\n{second}"


def _ratios(runs: Sequence[Run], part: str) -> list[float]:
    return [ratio for run in runs for ratio in run.ratios[part].values()]


def _spread(ratios: Sequence[float]) -> tuple[str, str, str]:
    return f"{median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}"


def write(path: Path, runs: Sequence[Run], effort: Effort) -> None:
    """One line per run, so that a diff of the committed file reads."""
    head: dict[str, Any] = {
        "machine": describe_machine(torch_threads=1),
        "pairs": list(effort.stages),
        "margins": MARGINS,
    }
    lines = ",\n".join(f"  {json.dumps({**run._asdict(), 'case': run.case.name})}" for run in runs)
    path.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n ]\n}}\n')
