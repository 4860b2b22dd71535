"""Runs an experiment's trials in processes of their own, as many at a time as the cores allow."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Self

import torch

from benchmarks.experiments.definition import Experiment, Trial
from benchmarks.experiments.trials import (
    Job,
    check_out,
    check_trial,
    describe_machine,
    list_jobs,
    load_trial,
    save_trial,
)
from fastac.build import resolve_workers
from fastac.cores import count_cores
from fastac.processes import CHILD_FAILURES, Child, ChildFailure, Children, Parent, start
from fastac.runs.files import RecordError, describe

if TYPE_CHECKING:
    from rich.progress import Progress

_POLL_S = 0.2  # how soon a signal is seen


def run_trials(experiment: Experiment, seeds: int, out: Path) -> signal.Signals | None:
    """Do what is missing of an experiment's trials, seeds 0 to `seeds - 1`, and write each to a file of `out`.

    A trial with one worker takes a core. One with more has the machine to itself, after all others: whatever ran
    beside it would slow all of its workers down.

    Returns:
        The signal that stopped it, SIGINT or SIGTERM, or None when all trials are there.

    Raises:
        ValueError: a file in `out` is damaged, of other settings, or of another experiment.
        RecordError: a file cannot be written.
        EnvFailure, NonFiniteError, WorkerFailure: trials failed, after all others were done; told of the first.
    """
    check_out(experiment, out)
    jobs = list_jobs(experiment, seeds)
    missing = [job for job in jobs if load_trial(job, out) is None]
    if not missing:
        return None
    _check_writable(out)
    cores = count_cores()
    needed = {job: cores if resolve_workers(job.config).run.workers != 1 else 1 for job in missing}
    waiting = sorted(missing, key=needed.__getitem__)  # stable: seed by seed
    machine = describe_machine(experiment)
    failures: list[ChildFailure] = []
    progress = _Progress(len(jobs) - len(missing), len(jobs))
    with (
        _note_signals() as signals,
        # For what trials write in passing, as those that are ended do not clean up themselves.
        TemporaryDirectory(prefix="fastac-", ignore_cleanup_errors=True) as scratch,
        progress,
        _ending() as running,
    ):
        while (waiting or running) and not signals:
            while waiting and sum(needed[job] for job in running.values()) + needed[waiting[0]] <= cores:
                job = waiting.pop(0)
                running[_start(job, scratch)] = job
            progress.show(list(running.values()))
            for child in Children(running).wait(_POLL_S):
                try:
                    done: _Done = child.receive()
                    save_trial(running[child], out, done.trial, done.wall_s, machine)
                    progress.end(f"{child.name}: {done.wall_s:,.1f} s")
                except CHILD_FAILURES as error:
                    failures.append(error)
                    progress.end(f"failed: {error}")
                child.end()
                del running[child]
    if signals:
        return signals[0]
    if failures:
        first = failures[0]
        what = f"{len(failures)} of {len(jobs)} trials failed, the first of them {first}"
        raise type(first)(what) from first.__cause__
    return None


@dataclass(frozen=True, slots=True)
class _Done:
    """What a process sends of a trial that went well."""

    trial: Trial
    wall_s: float


@contextmanager
def _ending() -> Iterator[dict[Child, Job]]:
    """Yield where the running trials are kept; those that are there at the end are ended."""
    running: dict[Child, Job] = {}
    try:
        yield running
    finally:
        Children(running).end()


def _start(job: Job, scratch: str) -> Child:
    # That module is imported once, and not by each trial.
    return start(str(job), partial(_work, job, scratch), "benchmarks.experiments.measures")


def _work(job: Job, scratch: str, parent: Parent) -> None:
    """Do one trial, in its own process, which ends with its parent."""
    # A run in here would take Ctrl-C as a wish to end it early and in order, and half a run would look like a trial.
    os.setsid()
    parent.listen(lambda message: None, grace_s=0.0)
    tempfile.tempdir = scratch
    torch.set_num_threads(1)
    began = time.perf_counter()
    trial = job.arm.measure(job.config)
    wall_s = time.perf_counter() - began
    check_trial(trial)
    parent.send(_Done(trial, wall_s))


def _check_writable(out: Path) -> None:
    """Make `out`, and write something there: what cannot be written is to be known before hours of work."""
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out):
            pass
    except OSError as error:
        raise RecordError(f"cannot write {out}: {describe(error)}; choose another --out.") from error


@contextmanager
def _note_signals() -> Iterator[list[signal.Signals]]:
    """Yield a list of the SIGINTs and SIGTERMs that came, in place of dying."""
    noted: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """Trials done and running: a bar on stderr if that is a terminal, else a line for each that ends."""

    def __init__(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.table import Column

            text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
            columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), text)
            self._bar = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> Self:
        if self._bar is None:
            print(f"{self._done} of {self._total} trials are there", file=sys.stderr, flush=True)
        else:
            self._bar.add_task("", completed=self._done, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, running: Sequence[Job]) -> None:
        """Show which trials are running."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=", ".join(map(str, running)))

    def end(self, how: str) -> None:
        """Tell how a trial ended."""
        self._done += 1
        line = f"[{self._done}/{self._total}] {how}"
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)
            self._bar.update(self._bar.task_ids[0], completed=self._done)
