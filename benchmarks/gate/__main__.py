"""The command line of the gate. Exit codes: 0 passed; 1 slower, larger, undeclared or a promise broken; 2 bad input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

import fastac
from benchmarks.gate import arithmetic, compare, declarations, promises, selftest, trend
from benchmarks.gate.trees import ROOT, export_base, export_head
from benchmarks.machine import describe_machine, format_machine
from benchmarks.tables import format_table
from fastac.text import log_on_stderr
from fastac.tools.gate.measure import FULL, QUICK, Effort, Measured
from fastac.tools.gate.report import format_measured
from fastac.tools.gate.sides import DriverError
from fastac.tools.gate.trees import Base, InputError, NoBaseError, resolve_base

_DECLARE = Effort((2,))  # memory varies little


class Compared(NamedTuple):
    bits: arithmetic.Found
    measured: Measured


def check(revision: str | None, effort: Effort) -> int:
    """Compare this working tree with its base, measure the promises, and note the rates."""
    if find_spec("stable_baselines3") is None:
        raise InputError("stable-baselines3 is not installed, which a promise is about: run `make install`.")
    passed, measured = True, None
    try:
        base = resolve_base(ROOT, revision, "fastac")
    except NoBaseError as error:
        print(f"Not compared with an earlier revision: {error}.")
    else:
        print(f"This working tree against {base.commit[:12]} ({base.why}).", flush=True)
        compared = compare_with(base, effort)
        measured = compared.measured
        print(format_measured(measured))
        lines, declared = check_declarations(compared, base)
        print("\n".join(lines), flush=True)
        passed = bool(measured.comparisons) and not measured.slower and declared
    _say_stage("measuring what the README promises")
    kept = promises.check_promises()
    print(format_promises(kept))
    passed = passed and all(promise.holds for promise in kept)
    trend.append(trend.TREND_PATH, rates(measured, kept), pairs=effort.stages[0], passed=passed)
    print(f"{format_machine(describe_machine(torch_threads=1))}\n{'Passed' if passed else 'FAILED'}.")
    return 0 if passed else 1


@contextmanager
def exported(base: Base) -> Iterator[tuple[Path, Path]]:
    """Write both trees to a folder that is removed in the end."""
    with TemporaryDirectory() as folder:
        trees = Path(folder) / "base", Path(folder) / "head"
        export_base(base.commit, trees[0])
        export_head(trees[1])
        yield trees


def compare_with(base: Base, effort: Effort) -> Compared:
    with exported(base) as trees:
        _say_stage(f"comparing the bits of {len(arithmetic.RUNS)} runs")
        bits = arithmetic.compare(*trees)  # first: this compiles what kernels there are to compile
        return Compared(bits, compare.compare(*trees, effort))


def _say_stage(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check_declarations(compared: Compared, base: Base) -> tuple[list[str], bool]:
    """Tell of other bits, and of memory, whether they are declared; return the lines, and whether all are."""
    bits = compared.bits
    lines = [f"{name}: its bits are not compared, the base does not run it." for name in bits.unknown]
    lines.append(f"The bits of {len(bits.same)} of {len(bits.same) + len(bits.changed)} runs are the base's.")
    passed = True
    for kind, changed in changes(compared).items():
        before, now = declarations.read_base(kind, base.commit), declarations.read(kind)
        missing = declarations.undeclared(changed, before, now)
        for name in changed:
            what = f"undeclared. {declarations.HOW}" if name in missing else f"as declared: {now[name]['reason']}"
            lines.append(f"{name}: {'other bits' if kind == 'arithmetic' else 'more memory'}, {what}")
        passed = passed and not missing
    return lines, passed


def changes(compared: Compared) -> dict[declarations.Kind, list[str]]:
    """Return the names of what may be declared and is not as in the base."""
    return {"arithmetic": compared.bits.changed, "memory": [m.what for m in compared.measured.larger]}


def declare(revision: str | None, reason: str | None) -> int:
    """Write to counts.json that what differs from the base is meant."""
    try:
        base = resolve_base(ROOT, revision, "fastac")
    except NoBaseError as error:
        raise InputError(f"{error}.") from error
    compared = compare_with(base, _DECLARE)
    names: dict[declarations.Kind, list[str]] = {
        "arithmetic": list(arithmetic.RUNS),
        "memory": [m.what for m in compared.measured.memory],
    }
    declared = {
        kind: declarations.declare(names[kind], changed, declarations.read_base(kind, base.commit), reason)
        for kind, changed in changes(compared).items()
    }
    for kind, entries in declared.items():
        declarations.write(kind, entries)
    found = [name for changed in changes(compared).values() for name in changed]
    print(f"Against {base.commit[:12]} ({base.why}), {len(found)} changes are declared{': ' if found else ''}", end="")
    print(f"{', '.join(found)}.")
    return 0


def format_promises(kept: Sequence[promises.Kept]) -> str:
    rows = [
        (k.promise.name, f"{k.slow_rate:,.0f}", f"{k.fast_rate:,.0f}", f"{k.ratio:.1f}", f"{k.promise.floor:g}")
        for k in kept
    ]
    table = format_table(("promised: steps per CPU second", "slow", "fast", "ratio", "floor"), rows)
    broken = [f"{k.promise.name}: {k.ratio:.1f} is below the floor." for k in kept if not k.holds]
    return "\n".join(["", table, *broken])


def rates(measured: Measured | None, kept: Sequence[promises.Kept]) -> dict[str, float]:
    """Steps per second of this working tree, and of what it was compared with: that is the machine's own trend."""
    found = {name: rate for k in kept for name, rate in ((k.promise.fast, k.fast_rate), (k.promise.slow, k.slow_rate))}
    for c in measured.comparisons if measured else []:
        if c.part == "wall":
            settings = compare.WORKLOADS[c.workload]
            found[c.workload] = settings["num_envs"] * settings["num_steps"] / c.head_s
    return {name: round(rate) for name, rate in found.items()}


def run_selftest(equal: int, slowed: int) -> int:
    """Run all cases, print the tables, write the file."""
    runs = []
    for run in selftest.run_selftest(equal, slowed, QUICK):
        runs.append(run)
        outcome = "passes" if run.passed else f"fails in {' and '.join(run.failed_parts)}"
        print(f"{run.case.name}: {outcome}, {run.pairs} pairs", flush=True)
    print(f"\n{selftest.format_runs(runs)}\n\n{format_machine(describe_machine(torch_threads=1))}")
    selftest.write(selftest.RESULT_PATH, runs, QUICK)
    return 0 if selftest.is_worth(runs) else 1


def draw_trend() -> int:
    found = trend.read(trend.TREND_PATH)
    trend.draw(found, trend.PICTURE_PATH)
    print("\n".join([*trend.describe_falls(found), f"{trend.PICTURE_PATH} shows {trend.TREND_PATH}"]))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", allow_abbrev=False)
    parser.add_argument("--base", help="the revision to compare with; default: where this branch left main")
    parser.add_argument("--quick", action="store_true", help="half of the processes")
    commands = parser.add_subparsers(dest="command")
    accept = commands.add_parser("declare", help="declare that other bits, or more memory, are meant")
    accept.add_argument("--base", help="as above")
    accept.add_argument("--reason", help="why")
    test = commands.add_parser("selftest", help="count the gate's false alarms, and the slowdowns that it sees")
    test.add_argument("--aa", type=int, default=40, help="runs of equal trees")
    test.add_argument("--slow", type=int, default=20, help="runs of each slowdown, half of each part")
    commands.add_parser("trend", help="draw the rates of all runs so far")
    options = parser.parse_args(argv)
    if options.command == "selftest" and (options.aa < 1 or options.slow < 1):
        parser.error(f"--aa is {options.aa} and --slow is {options.slow}, expected at least 1 each")
    return options


def _run(options: argparse.Namespace) -> int:
    home = Path(fastac.__file__).resolve().parents[1]
    if home != ROOT:
        raise InputError(f"`import fastac` finds {home}, expected {ROOT}: run it there, with `make bench-check`.")
    if options.command == "declare":
        return declare(options.base, options.reason)
    if options.command == "selftest":
        return run_selftest(options.aa, options.slow)
    if options.command == "trend":
        return draw_trend()
    return check(options.base, QUICK if options.quick else FULL)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    torch.set_num_threads(1)
    try:
        with log_on_stderr():
            return _run(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except DriverError as error:
        print(f"{error}\nFAILED.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
