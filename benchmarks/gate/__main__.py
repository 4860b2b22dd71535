"""The command line of the gate. Exit codes: 0 passed, 1 slower or a promise broken, 2 bad input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import fastac
from benchmarks.gate import compare, promises, selftest, trend
from benchmarks.gate.trees import ROOT, InputError, NoBaseError, export_revision, export_working_tree, resolve_base
from benchmarks.machine import describe_machine, format_machine
from benchmarks.tables import format_table

QUICK_SLICES, SLICES = 40, 120


def check(revision: str | None, slices: int) -> int:
    """Compare this working tree with its base, measure the promises, and note the rates."""
    if find_spec("stable_baselines3") is None:
        raise InputError("stable-baselines3 is not installed, which a promise is about: run `make install`.")
    try:
        base = resolve_base(ROOT, revision)
    except NoBaseError as error:
        print(f"Not compared with an earlier revision: {error}.")
        verdict = None
    else:
        print(f"This working tree against {base.commit[:12]} ({base.why}).", flush=True)
        verdict = compare_with(base.commit, slices)
        print(format_verdict(verdict), flush=True)
    kept = promises.check_promises()
    print(format_promises(kept))
    passed = (verdict is None or verdict.passed) and all(promise.holds for promise in kept)
    trend.append(trend.TREND_PATH, rates(verdict, kept), slices=slices, passed=passed)
    print(f"{format_machine(describe_machine(torch_threads=1))}\n{'Passed' if passed else 'FAILED'}.")
    return 0 if passed else 1


def compare_with(commit: str, slices: int) -> compare.Verdict:
    with TemporaryDirectory() as folder:
        base, head = Path(folder) / "base", Path(folder) / "head"
        export_revision(ROOT, commit, base)
        export_working_tree(ROOT, head)
        return compare.judge(partial(compare.compare, base, head), slices)


def format_verdict(verdict: compare.Verdict) -> str:
    """A table of every part, twice where it was measured twice, and what it means."""
    lines = [f"{name} is not compared, the base does not run it: {why}" for name, why in verdict.first.skipped.items()]
    if not verdict.first.comparisons:
        return "\n".join([*lines, "Nothing could be compared, which is a failure too: name a later BASE."])
    lines.append(format_comparisons(verdict.first.comparisons))
    if verdict.again:
        lines += ["\nMeasured again, longer:", format_comparisons(verdict.again)]
    for c in verdict.slower:
        margin = compare.MARGINS[c.part]
        lines.append(f"{c.workload}: {c.part} takes {c.ratio - 1:.0%} more than in the base, margin {margin:.0%}.")
    return "\n".join(lines)


def format_comparisons(comparisons: Sequence[compare.Comparison]) -> str:
    rows = [
        (
            f"{c.workload}: {c.part}",
            f"{compare.fast(c.base_s) * 1e3:.3f}",
            f"{compare.fast(c.head_s) * 1e3:.3f}",
            f"{c.ratio:.3f}{' SLOWER' if c.slower else ''}",
        )
        for c in comparisons
    ]
    return format_table(("ms per iteration, fast slices", "base", "HEAD", "HEAD over base"), rows)


def format_promises(kept: Sequence[promises.Kept]) -> str:
    rows = [
        (k.promise.name, f"{k.slow_rate:,.0f}", f"{k.fast_rate:,.0f}", f"{k.ratio:.1f}", f"{k.promise.floor:g}")
        for k in kept
    ]
    table = format_table(("promised: steps per CPU second", "slow", "fast", "ratio", "floor"), rows)
    broken = [f"{k.promise.name}: {k.ratio:.1f} is below the floor." for k in kept if not k.holds]
    return "\n".join(["", table, *broken])


def rates(verdict: compare.Verdict | None, kept: Sequence[promises.Kept]) -> dict[str, float]:
    """Steps per second of this working tree, and of what it was compared with: that is the machine's own trend."""
    found = {name: rate for k in kept for name, rate in ((k.promise.fast, k.fast_rate), (k.promise.slow, k.slow_rate))}
    for c in verdict.first.comparisons if verdict else []:
        if c.part == "wall":
            settings = compare.WORKLOADS[c.workload]
            found[c.workload] = settings["num_envs"] * settings["num_steps"] / compare.fast(c.head_s)
    return {name: round(rate) for name, rate in found.items()}


def run_selftest(equal: int, slowed: int) -> int:
    """Run all cases, print the tables, write the file."""
    runs = []
    for run in selftest.run_selftest(equal, slowed, QUICK_SLICES):
        runs.append(run)
        what = f"{run.slowed} slowed" if run.slowed else "A against A"
        outcome = "passes" if run.passed else f"fails in {' and '.join(run.failed_parts)}"
        print(f"{what}: {outcome}{', measured twice' if run.twice else ''}", flush=True)
    print(f"\n{selftest.format_runs(runs)}\n\n{format_machine(describe_machine(torch_threads=1))}")
    selftest.write(selftest.RESULT_PATH, runs, QUICK_SLICES)
    return 0 if all(run.as_expected for run in runs) else 1


def draw_trend() -> int:
    found = trend.read(trend.TREND_PATH)
    trend.draw(found, trend.PICTURE_PATH)
    print("\n".join([*trend.describe_falls(found), f"{trend.PICTURE_PATH} shows {trend.TREND_PATH}"]))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", allow_abbrev=False)
    parser.add_argument("--base", help="the revision to compare with; default: where this branch left main")
    parser.add_argument("--quick", action="store_true", help="a third of the slices")
    commands = parser.add_subparsers(dest="command")
    test = commands.add_parser("selftest", help="count the gate's false alarms, and the slowdowns that it sees")
    test.add_argument("--aa", type=int, default=20, help="runs of equal trees")
    test.add_argument("--slow", type=int, default=10, help="runs of each slowdown")
    commands.add_parser("trend", help="draw the rates of all runs so far")
    options = parser.parse_args(argv)
    if options.command == "selftest" and (options.aa < 1 or options.slow < 1):
        parser.error(f"--aa is {options.aa} and --slow is {options.slow}, expected at least 1 each")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    home = Path(fastac.__file__).resolve().parents[1]
    torch.set_num_threads(1)
    try:
        if home != ROOT:
            raise InputError(f"`import fastac` finds {home}, expected {ROOT}: run it there, with `make bench-check`.")
        if options.command == "selftest":
            return run_selftest(options.aa, options.slow)
        if options.command == "trend":
            return draw_trend()
        return check(options.base, QUICK_SLICES if options.quick else SLICES)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except compare.DriverError as error:
        print(f"{error}\nFAILED.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
