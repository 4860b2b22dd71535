"""Runs many trials, such as one training with several seeds or settings, in parallel processes."""

from __future__ import annotations

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
from fastac.pickling import Pickled, pickled
from fastac.processes import CHILD_FAILURES, Child, ChildFailure, Children, Parent, start
from fastac.system import leave_terminal

if TYPE_CHECKING:
    from rich.progress import Progress

Result = TypeVar("Result")

_POLL_S = 0.2  # seconds; maximum delay until a signal is noticed


@dataclass(frozen=True, slots=True)
class Trial(Generic[Result]):
    """The work of one process.

    Attributes:
        name: used in messages.
        work: a module-level function, or a `partial` of one, since it is sent to another process.
        needs_machine: whether it uses all cores; other trials use one.
    """

    name: str
    work: Callable[[], Result]
    needs_machine: bool = False


def run_trials(
    trials: Sequence[Trial[Result]],
    keep: Callable[[int, Result, float], None],
    preload: str = "fastac.api",
    num_done: int = 0,
) -> signal.Signals | None:
    """Run trials, as many in parallel as there are cores.

    A trial that needs the machine runs alone, after all others: a parallel trial would slow all of its workers down.
    A bar on stderr shows the progress, or lines if stderr is not a terminal.

    Args:
        trials: in the order in which they begin.
        keep: called with each result as soon as it is available: the trial's index in `trials`, its return value,
            and its seconds.
        preload: a module that is imported once for all trials, such as that of their function.
        num_done: number of trials already done, for the bar.

    Returns:
        The signal that stopped them, SIGINT or SIGTERM, or None when all are done.

    Raises:
        EnvFailure, NonFiniteError, WorkerFailure: trials failed; raised after all others are done, for the first one.
    """
    num_cores = count_cores()
    cores = [num_cores if trial.needs_machine else 1 for trial in trials]
    waiting = sorted(range(len(trials)), key=cores.__getitem__)  # stable: keeps their order
    failures: list[ChildFailure] = []
    progress = _Progress(num_done, num_done + len(trials))
    with (
        _note_signals() as signals,
        # for temporary files: trials that are killed do not clean up themselves
        TemporaryDirectory(prefix="fastac-", ignore_cleanup_errors=True) as scratch,
        progress,
        _ending() as running,
    ):
        while (waiting or running) and not signals:
            while waiting and sum(cores[at] for at in running.values()) + cores[waiting[0]] <= num_cores:
                at = waiting.pop(0)
                running[_start(trials[at], scratch, preload)] = at
            progress.show([child.name for child in running])
            for child in Children(running).wait(_POLL_S):
                try:
                    done: _Done[Result] = child.receive()
                except CHILD_FAILURES as error:
                    failures.append(error)
                    progress.end(f"failed: {error}")
                else:
                    keep(running[child], done.result, done.wall_s)
                    progress.end(f"{child.name}: {done.wall_s:,.1f} s")
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
    """The message of a process whose trial succeeded."""

    result: Result
    wall_s: float


def _start(trial: Trial[Result], scratch: str, preload: str) -> Child:
    work = pickled(trial.work, f"{trial.name} is done in another process: define its function at the top of a module")
    return start(trial.name, partial(_work, work, scratch), preload, work)


def _work(work: Pickled[Callable[[], Result]], scratch: str, parent: Parent) -> None:
    """Do one trial, in its own process, which ends with its parent."""
    leave_terminal()  # a run in here would end early on Ctrl-C, and half a run would look like a trial
    parent.listen(lambda message: None, grace_s=0.0)
    tempfile.tempdir = scratch
    torch.set_num_threads(1)
    began = time.perf_counter()
    result = work.load()()
    wall_s = time.perf_counter() - began
    sys.stdout.flush()  # the parent ends this process once it has the result
    sys.stderr.flush()
    parent.send(_Done(result, wall_s))


@contextmanager
def _ending() -> Iterator[dict[Child, int]]:
    """Yield a dict for the running trials; end those that remain at exit."""
    running: dict[Child, int] = {}
    try:
        yield running
    finally:
        Children(running).end()


@contextmanager
def _note_signals() -> Iterator[list[signal.Signals]]:
    """Yield a list that collects SIGINTs and SIGTERMs, which then do not kill the process."""
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
    """Trials done and running: a bar on stderr if that is a terminal, else a line for each finished trial."""

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
        """Report how a trial ended."""
        self._done += 1
        line = f"[{self._done}/{self._total}] {how}"
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)
            self._bar.update(self._bar.task_ids[0], completed=self._done)
