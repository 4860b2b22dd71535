"""Many trials, such as one training with several seeds or settings: each in a process of its own, side by side."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import torch

from fastac.cpu import count_cores
from fastac.processes import CHILD_FAILURES, Child, ChildFailure, Children, Parent, start

if TYPE_CHECKING:
    from rich.progress import Progress

Result = TypeVar("Result")

_POLL_S = 0.2  # how soon a signal is seen


@dataclass(frozen=True, slots=True)
class Trial(Generic[Result]):
    """What one process does.

    Attributes:
        name: in messages.
        work: a function of a module, or a `partial` of one, as it goes to another process.
        needs_machine: whether it uses all cores; others take one.
    """

    name: str
    work: Callable[[], Result]
    needs_machine: bool = False


def run_trials(
    trials: Sequence[Trial[Result]],
    keep: Callable[[int, Result, float], None],
    preload: str,
    num_done: int = 0,
) -> signal.Signals | None:
    """Run trials, as many at a time as there are cores.

    One that needs the machine has it to itself, after all others: whatever ran beside it would slow all of its workers
    down. A bar on stderr tells how far they are, or lines if that is no terminal.

    Args:
        trials: in the order in which they begin.
        keep: is given each result as soon as it is there: the trial's place in `trials`, what it returned, and its
            seconds.
        preload: a module that all of them import.
        num_done: trials that are done already, for the bar.

    Returns:
        The signal that stopped them, SIGINT or SIGTERM, or None when all are done.

    Raises:
        EnvFailure, NonFiniteError, WorkerFailure: trials failed, after all others were done; told of the first.
    """
    num_cores = count_cores()
    cores = [num_cores if trial.needs_machine else 1 for trial in trials]
    waiting = sorted(range(len(trials)), key=cores.__getitem__)  # stable: in their order
    failures: list[ChildFailure] = []
    progress = _Progress(num_done, num_done + len(trials))
    with (
        _note_signals() as signals,
        # For what trials write in passing, as those that are ended do not clean up themselves.
        TemporaryDirectory(prefix="fastac-", ignore_cleanup_errors=True) as scratch,
        progress,
        _ending() as running,
    ):
        while (waiting or running) and not signals:
            while waiting and sum(cores[at] for at in running.values()) + cores[waiting[0]] <= num_cores:
                at = waiting.pop(0)
                running[start(trials[at].name, partial(_work, trials[at].work, scratch), preload)] = at
            progress.show([child.name for child in running])
            for child in Children(running).wait(_POLL_S):
                try:
                    done: _Done[Result] = child.receive()
                    keep(running[child], done.result, done.wall_s)
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
        what = f"{len(failures)} of {num_done + len(trials)} trials failed, the first of them {first}"
        raise type(first)(what) from first.__cause__
    return None


@dataclass(frozen=True, slots=True)
class _Done(Generic[Result]):
    """What a process sends of a trial that went well."""

    result: Result
    wall_s: float


def _work(work: Callable[[], Result], scratch: str, parent: Parent) -> None:
    """Do one trial, in its own process, which ends with its parent."""
    # A run in here would take Ctrl-C as a wish to end it early and in order, and half a run would look like a trial.
    os.setsid()
    parent.listen(lambda message: None, grace_s=0.0)
    tempfile.tempdir = scratch
    torch.set_num_threads(1)
    began = time.perf_counter()
    result = work()
    parent.send(_Done(result, time.perf_counter() - began))


@contextmanager
def _ending() -> Iterator[dict[Child, int]]:
    """Yield where the running trials are kept; those that are there at the end are ended."""
    running: dict[Child, int] = {}
    try:
        yield running
    finally:
        Children(running).end()


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

    def show(self, names: Sequence[str]) -> None:
        """Show which trials are running."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=", ".join(names))

    def end(self, how: str) -> None:
        """Tell how a trial ended."""
        self._done += 1
        line = f"[{self._done}/{self._total}] {how}"
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)
            self._bar.update(self._bar.task_ids[0], completed=self._done)
