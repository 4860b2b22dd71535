"""fastac train --seeds, and fastac sweep."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastac.cli.train import TrainOptions, read_settings
from fastac.config import Config
from fastac.garbage import loading
from fastac.studies.options import SweepOptions
from fastac.text import fit, fit_command


@dataclass(frozen=True)
class SweepCommand(SweepOptions):
    """Search for settings, and train the best with fresh seeds. A flag of train fixes a setting."""

    preset: str | None = None
    """Name of a preset where the search begins, instead of the one named like the algorithm (see fastac list)."""
    run_dir: Path | None = None
    """Directory of the sweep; the same command goes on there. Default: runs/sweep-ENV-ALGO."""
    json: bool = False
    """Print sweep.json instead of the report."""


SWEEP_FLAGS = (
    *("algo", "preset", "trials", "minutes", "total_env_steps", "seeds_per_trial", "objective", "until_return"),
    *("pruner", "space", "confirm_seeds", "storage", "study", "seed", "workers", "env_kwargs", "run_dir", "json"),
)


def train_seeds(options: TrainOptions, seeds: int, config: Config, has_workers: bool, command: str) -> int:
    """Run `fastac train` for many seeds; the exit code is 1 if one of them failed."""
    with loading():
        from fastac.studies.seeds import default_directory, one_worker, run_seeds, tell

        config = one_worker(config, None, None, is_asked=has_workers)
    directory = options.run_dir or default_directory(config, seeds)
    done, stopped = run_seeds(config, seeds, directory, verbose=True, command=command)
    if stopped is not None:
        again = command if options.run_dir is not None else f"{command} --run-dir {directory}"
        print(fit(f"Stopped by {stopped.name}; all is saved. Continue with:", sys.stderr), file=sys.stderr)
        print(fit_command(again, sys.stderr), file=sys.stderr)
        return 128 + stopped
    assert done is not None
    picture = "" if done.picture is None else f", the picture is {done.picture.name}"
    if options.json:
        print(json.dumps(done.to_dict(), allow_nan=False))
    else:
        print(file=sys.stderr)
        print(fit(tell(done), sys.stdout))
    print(fit(f"Everything is in {done.directory}{picture}", sys.stderr), file=sys.stderr)
    return 1 if done.failed else 0


def sweep(words: Sequence[str]) -> int:
    """Run `fastac sweep`."""
    with loading():
        options, asked = read_settings("sweep", SweepCommand, words, SWEEP_FLAGS)
        from fastac.studies.seeds import one_worker
        from fastac.studies.sweep import default_directory, run_sweep
        from fastac.studies.sweep_report import tell, to_command, to_dict

        config = one_worker(asked.config, None, None, is_asked="workers" in asked.settings)
    directory = options.run_dir or default_directory(config)
    done, stopped = run_sweep(config, list(asked.settings), options, directory, verbose=True)
    if stopped is not None:
        print(fit(f"Stopped by {stopped.name}; all is saved. Continue with:", sys.stderr), file=sys.stderr)
        print(fit_command(shlex.join(["fastac", "sweep", *words]), sys.stderr), file=sys.stderr)
        return 128 + stopped
    assert done is not None
    if options.json:
        print(json.dumps(to_dict(done), allow_nan=False))
    else:
        print(fit(tell(done, fit_command(to_command(done), sys.stdout)), sys.stdout))
    more = ", and the runs of the fresh seeds" if done.fresh_seeds else ""
    told = f"Everything is in {done.directory}: report.md, sweep.json, sweep.png{more}"
    print(fit(told, sys.stderr), file=sys.stderr)
    return 0
