"""Run one of the lecture's experiments, or list them.

    python -m benchmarks.experiments list
    python -m benchmarks.experiments gae-lambda --seeds 10

A restarted run continues with the missing trials.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments import find_experiment, list_experiments, run_experiment, write_report
from fastac.runs.files import RecordError
from fastac.text import fit

_PROG = "python -m benchmarks.experiments"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 2 for bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s")
    try:
        return _run(words)
    except (ValueError, RecordError) as error:
        print(fit(f"experiments: {error}", sys.stderr), file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    options = _parse(words)
    if options.name == "list":
        for each in list_experiments():
            print(fit(f"{each.name:<20}{each.question}", sys.stdout, hang=20))
        return 0
    experiment, seeds = find_experiment(options.name), options.seeds
    out = options.out or Path("runs", "experiments", experiment.name)
    stop_signal = run_experiment(experiment, seeds, out)
    if stop_signal is not None:
        command = f"{_PROG} {shlex.join(words)}"
        print(fit(f"Stopped by {stop_signal.name}. Continue with: {command}", sys.stderr), file=sys.stderr)
        return 128 + stop_signal
    print(write_report(experiment, seeds, out))
    told = f"\nEverything is in {out}: report.md, results.json and {experiment.name}.png"
    print(fit(told, sys.stderr), file=sys.stderr)
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=_PROG, description="Run an experiment over several seeds, or list them all.")
    parser.add_argument("name", help="an experiment's name, or list")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds, from 0 on (default: 10)")
    parser.add_argument("--out", type=Path, help="a directory for what comes out (default: runs/experiments/NAME)")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
