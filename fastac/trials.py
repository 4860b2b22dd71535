"""Runs many trials, such as one training with several seeds or settings, in parallel processes."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

import torch

from fastac.cpu import count_cores, use_cores
from fastac.pickling import Pickled, pickled
from fastac.processes import CHILD_FAILURES, Child, ChildFailure, Children, Message, Parent, start
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
        cores: how many cores it uses; all of them if it asks for more than there are.
    """

    name: str
    work: Callable[[], Result]
    cores: int = 1


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a plan has come.

    Attributes:
        done: trials done so far; a part of one counts as a part.
        total: of all its trials.
        text: what else to show, in a few words.
    """

    done: float
    total: int
    text: str = ""


class Plan(Protocol[Result]):
    """Decides what is run next, and hears how it goes."""

    def next(self) -> Trial[Result] | None:
        """Return the next trial, or None if there is none, at least as long as the others run."""

    def hear(self, trial: Trial[Result], message: Message) -> bool:
        """Take what a trial says by `consult`; return whether it is to go on."""

    def keep(self, trial: Trial[Result], result: Result, wall_s: float) -> str:
        """Take a trial's result and its seconds; return a line about it, or "" to say nothing."""

    def fail(self, trial: Trial[Result], error: ChildFailure) -> str:
        """Take a trial's failure; return a line about it."""

    def tell(self, running: Sequence[str]) -> Standing:
        """Return how far it has come; `running` names the trials in progress."""


def run_trials(
    trials: Sequence[Trial[Result]],
    keep: Callable[[int, Result, float], None],
    preload: str = "fastac.api",
    num_done: int = 0,
) -> signal.Signals | None:
    """Run given trials, as many in parallel as there are cores for.

    Those that use more cores come last: trials beside them would slow all of their workers down.

    Args:
        trials: in the order in which they begin.
        keep: called with each result as soon as it is available: the trial's index in `trials`, its return value,
            and its seconds.
        preload: see `run_plan`.
        num_done: number of trials already done, for the bar.

    Returns:
        The signal that stopped them, SIGINT or SIGTERM, or None when all are done.

    Raises:
        EnvFailure, NonFiniteError, WorkerFailure: trials failed; raised after all others are done, for the first one.
    """
    plan = _Fixed(trials, keep, num_done)
    stopped = run_plan(plan, preload)
    if stopped is None and plan.failures:
        first = plan.failures[0]
        what = f"{len(plan.failures)} of {num_done + len(trials)} trials failed, the first of them {first}"
        raise type(first)(what) from first.__cause__
    return stopped


def run_plan(
    plan: Plan[Result], preload: str = "fastac.api", grace_s: float = 0.0, is_shown: bool = True
) -> signal.Signals | None:
    """Run a plan's trials, each in a process of its own with one torch thread, as many as there are cores for.

    Args:
        plan: decides what is run.
        preload: a module that is imported once for all trials, such as that of their function.
        grace_s: seconds that trials have to end by themselves after a signal, which `consult` tells them.
        is_shown: whether stderr shows the progress: a bar, or lines if it is not a terminal.

    Returns:
        The signal that stopped them, SIGINT or SIGTERM, or None when all are done.
    """
    running: dict[Child, Trial[Result]] = {}
    with (
        _note_signals() as signals,
        # for temporary files: trials that are killed do not clean up themselves
        TemporaryDirectory(prefix="fastac-", ignore_cleanup_errors=True) as scratch,
        _Progress(plan.tell([]), is_shown) as progress,
        _ending(running),
    ):
        pool = _Pool(plan, running, scratch, preload, progress)
        while not signals:
            pool.fill()
            if not running:
                return None
            pool.serve(is_over=False)
        until = time.monotonic() + grace_s
        while running and len(signals) == 1 and time.monotonic() < until:
            pool.serve(is_over=True)
        return signals[0]


def consult(message: Message) -> bool:
    """Tell the plan how this trial goes, and return whether to go on; always True where no trial runs."""
    if _parent is None:
        return True
    _parent.send(_Asked(message))
    return _answers.get()


@dataclass(frozen=True, slots=True)
class _Done(Generic[Result]):
    """The message of a process whose trial succeeded."""

    result: Result
    wall_s: float


@dataclass(frozen=True, slots=True)
class _Asked:
    """The message of a trial that asks whether to go on."""

    message: Message


class _Pool(Generic[Result]):
    """The processes of a plan's trials."""

    def __init__(
        self,
        plan: Plan[Result],
        running: dict[Child, Trial[Result]],
        scratch: str,
        preload: str,
        progress: _Progress,
    ) -> None:
        self._plan, self._running, self._scratch, self._preload = plan, running, scratch, preload
        self._progress, self._num_cores = progress, count_cores()
        self._waiting: Trial[Result] | None = None  # for more cores than are free

    def fill(self) -> None:
        """Start trials as long as there are free cores; one that nobody has a core for is not asked for."""
        while self._num_free > 0:
            self._waiting = trial = self._waiting or self._plan.next()
            if trial is None or self._cores_of(trial) > self._num_free:
                return
            self._running[_start(trial, self._scratch, self._preload)] = trial
            self._waiting = None

    @property
    def _num_free(self) -> int:
        return self._num_cores - sum(map(self._cores_of, self._running.values()))

    def _cores_of(self, trial: Trial[Result]) -> int:
        return min(trial.cores, self._num_cores)

    def serve(self, is_over: bool) -> None:
        """Answer the trials, and take results and failures; if `is_over`, tell them to end, and take nothing."""
        self._progress.show(self._plan.tell([child.name for child in self._running]))
        for child in Children(self._running).wait(_POLL_S):
            trial = self._running[child]
            try:
                message: _Asked | _Done[Result] = child.receive()
                if isinstance(message, _Asked):
                    child.send(self._plan.hear(trial, message.message) and not is_over)
                    continue
            except CHILD_FAILURES as error:
                told = "" if is_over else self._plan.fail(trial, error)
            else:
                told = "" if is_over else self._plan.keep(trial, message.result, message.wall_s)
            child.end()
            del self._running[child]
            self._progress.end(told, self._plan.tell([]))


class _Fixed(Generic[Result]):
    """The plan of `run_trials`."""

    def __init__(
        self, trials: Sequence[Trial[Result]], keep: Callable[[int, Result, float], None], num_done: int
    ) -> None:
        self.failures: list[ChildFailure] = []
        self._places = {id(trial): at for at, trial in enumerate(trials)}
        self._waiting = sorted(trials, key=lambda trial: trial.cores)  # stable: keeps their order
        self._keep, self._done, self._total = keep, num_done, num_done + len(trials)

    def next(self) -> Trial[Result] | None:
        return self._waiting.pop(0) if self._waiting else None

    def hear(self, trial: Trial[Result], message: Message) -> bool:
        return True

    def keep(self, trial: Trial[Result], result: Result, wall_s: float) -> str:
        self._keep(self._places[id(trial)], result, wall_s)
        self._done += 1
        return f"{trial.name}: {wall_s:,.1f} s"

    def fail(self, trial: Trial[Result], error: ChildFailure) -> str:
        self.failures.append(error)
        self._done += 1
        return f"failed: {error}"

    def tell(self, running: Sequence[str]) -> Standing:
        return Standing(self._done, self._total, ", ".join(running))


def _start(trial: Trial[Result], scratch: str, preload: str) -> Child:
    work = pickled(trial.work, f"{trial.name} is done in another process: define its function at the top of a module")
    return start(trial.name, partial(_work, work, trial.cores, scratch), preload, work)


# The process of a trial: its parent, and the answers of `consult`, which another thread receives.
_parent: Parent | None = None
_answers: SimpleQueue[bool] = SimpleQueue()


def _work(work: Pickled[Callable[[], Result]], cores: int, scratch: str, parent: Parent) -> None:
    """Do one trial, in its own process, which ends with its parent."""
    global _parent
    leave_terminal()  # a run in here would end early on Ctrl-C, and half a run would look like a trial
    _parent = parent
    parent.listen(_answers.put, grace_s=0.0)
    tempfile.tempdir = scratch
    use_cores(cores)
    torch.set_num_threads(1)
    began = time.perf_counter()
    result = work.load()()
    wall_s = time.perf_counter() - began
    sys.stdout.flush()  # the parent ends this process once it has the result
    sys.stderr.flush()
    parent.send(_Done(result, wall_s))


@contextmanager
def _ending(running: Iterable[Child]) -> Iterator[None]:
    """End the trials that still run at exit."""
    try:
        yield
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

    def __init__(self, standing: Standing, is_shown: bool) -> None:
        self._standing, self._is_shown = standing, is_shown
        self._bar: Progress | None = None
        if is_shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.table import Column

            text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
            columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), text)
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.add_task("")

    def __enter__(self) -> Self:
        if self._bar is None:
            self._print(f"{int(self._standing.done)} of {self._standing.total} trials are there")
        else:
            self.show(self._standing)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, standing: Standing) -> None:
        """Show how far the plan has come."""
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=standing.done, total=standing.total, description=standing.text
            )

    def end(self, how: str, standing: Standing) -> None:
        """Report how a trial ended, unless there is nothing to say."""
        self.show(standing)
        if how:
            self._print(f"[{int(standing.done)}/{standing.total}] {how}")

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        elif self._is_shown:
            print(line, file=sys.stderr, flush=True)
