"""fastac train --seeds, and fastac sweep."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from fastac.config import Config
from fastac.garbage import loading
from fastac.text import fit, fit_command

if TYPE_CHECKING:
    from fastac.cli.train import TrainOptions


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
        print(fit(tell(done), sys.stdout))
    print(fit(f"Everything is in {done.directory}{picture}", sys.stderr), file=sys.stderr)
    return 1 if done.failed else 0
