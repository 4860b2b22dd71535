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
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Self, cast

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
from fastac.contract import WorkerFailure
from fastac.processes import (
    Child,
    Failed,
    close,
    count_cores,
    exit_with_parent,
    get_context,
    start,
    to_error,
    to_failed,
)
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
    failures: list[tuple[Job, Failed]] = []
    progress = _Progress(len(jobs) - len(missing), len(jobs))
    with (
        _note_signals() as signals,
        # For what trials write in passing, as those that are ended do not clean up themselves.
        TemporaryDirectory(prefix="fastac-", ignore_cleanup_errors=True) as scratch,
        progress,
        _tasks() as running,
    ):
        while (waiting or running) and not signals:
            while waiting and sum(needed[task.job] for task in running.values()) + needed[waiting[0]] <= cores:
                task = _start(waiting.pop(0), scratch)
                running[task.child.pipe] = task
            progress.show([task.job for task in running.values()])
            for pipe in wait(list(running), timeout=_POLL_S):
                task = running.pop(cast("Connection", pipe))
                outcome = _receive(task.child)
                if isinstance(outcome, Failed):
                    failures.append((task.job, outcome))
                    progress.end(task.job, f"failed: {outcome.message}")
                else:
                    save_trial(task.job, out, outcome.trial, outcome.wall_s, machine)
                    progress.end(task.job, f"{outcome.wall_s:,.1f} s")
    if signals:
        return signals[0]
    if failures:
        job, failed = failures[0]
        raise to_error(f"{len(failures)} of {len(jobs)} trials failed, the first of them {job}", failed)
    return None


@dataclass(frozen=True, slots=True)
class _Task:
    """A job in a process."""

    job: Job
    child: Child


@dataclass(frozen=True, slots=True)
class _Done:
    """What a process sends of a trial that went well."""

    trial: Trial
    wall_s: float


@contextmanager
def _tasks() -> Iterator[dict[Connection, _Task]]:
    """Yield where the running tasks are kept; those that are there at the end are ended."""
    running: dict[Connection, _Task] = {}
    try:
        yield running
    finally:
        close([task.child for task in running.values()])


def _start(job: Job, scratch: str) -> _Task:
    context = get_context("benchmarks.experiments.measures")  # so that trials do not import it each by itself
    try:
        return _Task(job, start(context, partial(_work, job, scratch)))
    except OSError as error:  # no memory, or too many open files
        raise WorkerFailure(f"{job} could not be started ({error})") from error


def _work(job: Job, scratch: str, pipe: Connection) -> None:
    """Do one trial, in its own process, which ends with its parent."""
    # A run in here would take Ctrl-C as a wish to end it early and in order, and half a run would look like a trial.
    os.setsid()
    exit_with_parent(pipe, lambda message: None, grace_s=0.0)
    tempfile.tempdir = scratch
    torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        trial = job.arm.measure(job.config)
        wall_s = time.perf_counter() - began
        check_trial(trial)
        pipe.send(_Done(trial, wall_s))
    except Exception as error:
        pipe.send(to_failed(error))


def _receive(child: Child) -> _Done | Failed:
    """Return what a process has sent, and see it end."""
    try:
        outcome = child.pipe.recv()
    except (EOFError, ConnectionError):
        outcome = Failed(f"its process ended with exit code {child.exit_code()}", "")
    close([child])
    assert isinstance(outcome, _Done | Failed)
    return outcome


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

    def end(self, job: Job, how: str) -> None:
        """Tell how a trial ended."""
        self._done += 1
        line = f"[{self._done}/{self._total}] {job}: {how}"
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)
            self._bar.update(self._bar.task_ids[0], completed=self._done)
