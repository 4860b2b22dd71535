"""Runs an experiment's trials, and saves each to a file."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.experiments.definition import Experiment, Measurement
from benchmarks.experiments.jobs import (
    Job,
    check_measurement,
    check_out,
    describe_machine,
    list_jobs,
    load_measurement,
    save_measurement,
)
from fastac import trials
from fastac.build import resolve_workers
from fastac.cpu import count_cores
from fastac.runs.files import RecordError, describe
from fastac.trials import Trial


def run_experiment(experiment: Experiment, seeds: int, out: Path) -> signal.Signals | None:
    """Run the missing trials of an experiment, seeds 0 to `seeds - 1`, and write each to a file in `out`.

    Returns:
        The signal that stopped it, SIGINT or SIGTERM, or None when all trials are complete.

    Raises:
        ValueError: a file in `out` is damaged, has other settings, or belongs to another experiment.
        RecordError: a file cannot be written.
        EnvFailure, NonFiniteError, WorkerFailure: trials failed; raised after all others are done, for the first one.
    """
    check_out(experiment, out)
    jobs = list_jobs(experiment, seeds)
    missing = [job for job in jobs if load_measurement(job, out) is None]
    if not missing:
        return None
    _check_writable(out)
    machine = describe_machine(experiment)

    def keep(at: int, measurement: Measurement, wall_s: float) -> None:
        save_measurement(missing[at], out, measurement, wall_s, machine)

    return trials.run_trials(
        [Trial(str(job), partial(_measure, job), _cores(job)) for job in missing],
        keep,
        preload="benchmarks.experiments.measures",
        num_done=len(jobs) - len(missing),
    )


def _cores(job: Job) -> int:
    """Return the cores of a trial: all if it has several workers, which a trial beside them would slow down."""
    return 1 if resolve_workers(job.config).run.workers == 1 else count_cores()


def _measure(job: Job) -> Measurement:
    measurement = job.arm.measure(job.config)
    check_measurement(measurement)
    return measurement


def _check_writable(out: Path) -> None:
    """Create `out` and write a temporary entry there: an unwritable folder must be detected before hours of work."""
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out):
            pass
    except OSError as error:
        raise RecordError(f"cannot write {out}: {describe(error)}; choose another --out.") from error
