"""Progress of a run: a bar on a terminal, else a line per evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from fastac.contract import Report
from fastac.runs.tracker import ReturnTracker

_PERIOD_S = 0.1
_LINES = 10  # at most, for a run without evaluations


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation, as displayed.

    Attributes:
        env_steps: training steps before it.
        mean_return: mean return of its episodes.
        std_return: standard deviation of their returns.
        best: the best mean return so far.
        eval_wall_s: seconds of all evaluations so far.
    """

    env_steps: int
    mean_return: float
    std_return: float
    best: float
    eval_wall_s: float


class Bar(Protocol):
    """Shows a run's progress."""

    def update(self, report: Report, tracker: ReturnTracker) -> None:
        """Show an iteration; `tracker` has already been updated with `report`."""

    def evaluating(self, played: int, episodes: int) -> None:
        """Show the progress of an evaluation."""

    def evaluated(self, result: Evaluated) -> None:
        """Show the result of an evaluation of the latest report."""

    def close(self) -> None:
        """Show the latest state and restore the terminal; safe to call twice."""


class NullBar:
    """Shows nothing."""

    def update(self, report: Report, tracker: ReturnTracker) -> None:
        """Do nothing."""

    def evaluating(self, played: int, episodes: int) -> None:
        """Do nothing."""

    def evaluated(self, result: Evaluated) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class ProgressBar:
    """Shows steps, rate, return, best evaluation and time left in one line on stderr.

    A redraw costs 0.5 ms, so there are at most ten per second; calls of `update` in between cost 0.2 us.
    """

    def __init__(self, total_env_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw an empty bar.

        Args:
            total_env_steps: the steps at which the bar is full.
            clock: returns seconds; limits the redraws.
        """
        # Import here: it takes 0.1 s, which runs without a terminal should not pay.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._total = total_env_steps
        self._clock = clock
        self._next_at = clock()
        self._latest: tuple[Report, ReturnTracker] | None = None
        self._evaluated: Evaluated | None = None
        self._playing: tuple[int, int] | None = None
        self._progress = Progress(
            BarColumn(bar_width=8),  # keeps the line below 80 columns, so that the "^C" a terminal prints fits
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
            console=Console(stderr=True),
            auto_refresh=False,  # no thread: it would compete with training
            redirect_stdout=sys.stdout.isatty(),  # lines printed above the bar; a piped stdout stays a pipe
        )
        self._task = self._progress.add_task("", total=total_env_steps, text="starting")
        self._progress.start()

    def update(self, report: Report, tracker: ReturnTracker) -> None:
        """Show an iteration if the last redraw was at least 0.1 s ago, else keep it for `close`."""
        self._latest, self._playing = (report, tracker), None
        self._draw_if_due()

    def evaluating(self, played: int, episodes: int) -> None:
        """Show the progress of an evaluation, at the same rate as `update`."""
        self._playing = (played, episodes) if episodes else self._playing
        self._draw_if_due()

    def evaluated(self, result: Evaluated) -> None:
        """Keep an evaluation's result for the redraws."""
        self._evaluated, self._playing = result, None

    def close(self) -> None:
        """Show the latest state and restore the terminal."""
        self._playing = None
        if self._latest is not None:
            self._draw(*self._latest)
            self._latest = None
        self._progress.stop()

    def _draw_if_due(self) -> None:
        if self._latest is not None and self._clock() >= self._next_at:
            self._draw(*self._latest)
            self._next_at = self._clock() + _PERIOD_S

    def _draw(self, report: Report, tracker: ReturnTracker) -> None:
        text = "  ".join(
            [
                f"{shorten(report.env_steps)}/{shorten(self._total)} steps",
                *self._tell_pace(tracker),
                *([] if self._evaluated is None else [f"best {self._evaluated.best:.1f}"]),
                f"{_to_clock(self._left_s(report, tracker))} left",
            ]
        )
        self._progress.update(self._task, completed=report.env_steps, text=text, refresh=True)

    def _tell_pace(self, tracker: ReturnTracker) -> list[str]:
        if self._playing is not None:
            played, episodes = self._playing
            return [f"evaluating {played}/{episodes}"]
        return [f"{shorten(tracker.sps_window)} steps/s", f"return {_tell_return(tracker)}"]

    def _left_s(self, report: Report, tracker: ReturnTracker) -> float | None:
        """Return the seconds left, assuming that evaluations keep their share of the time."""
        if tracker.sps_window <= 0.0:
            return None
        training_s = (self._total - report.env_steps) / tracker.sps_window
        evaluating_s = 0.0 if self._evaluated is None else self._evaluated.eval_wall_s
        return training_s * (1.0 + evaluating_s / max(report.train_wall_s, 1e-9))


class ProgressLines:
    """Writes a line per evaluation, for a log file or a pipe; without evaluations, a line at regular intervals."""

    def __init__(self, total_env_steps: int, out: TextIO) -> None:
        """Take the output stream."""
        self._every, self._total, self._out = max(1, total_env_steps // _LINES), total_env_steps, out
        self._latest: tuple[Report, ReturnTracker] | None = None
        self._told_at = 0  # env steps

    def update(self, report: Report, tracker: ReturnTracker) -> None:
        """Write a line if one is due."""
        self._latest = report, tracker
        if report.env_steps - self._told_at > self._every:
            self._write(report.env_steps, "")

    def evaluating(self, played: int, episodes: int) -> None:
        """Write nothing: a line follows when the evaluation ends."""

    def evaluated(self, result: Evaluated) -> None:
        """Write a line."""
        told = f"   evaluation {result.mean_return:7.1f} +- {result.std_return:<6.1f} best {result.best:7.1f}"
        self._write(result.env_steps, told)

    def close(self) -> None:
        """Do nothing."""

    def _write(self, env_steps: int, more: str) -> None:
        if self._latest is None:
            return
        report, tracker = self._latest
        self._told_at = report.env_steps
        steps = f"{shorten(env_steps):>5} of {shorten(self._total)} steps"
        line = f"{steps} {shorten(tracker.sps_window):>6} steps/s   return {_tell_return(tracker):>7}{more}"
        print(line, file=self._out, flush=True)


def open_bar(total_env_steps: int) -> Bar:
    """Return a bar if stderr is a terminal, else `ProgressLines` on it."""
    if sys.stderr.isatty():
        return ProgressBar(total_env_steps)
    return ProgressLines(total_env_steps, sys.stderr)


def shorten(number: float) -> str:
    """Return a number with three digits and a unit, e.g. 123k or 1.2M."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5 or unit == "G":
            break
        number /= 1000.0
    return f"{number:.3g}{unit}"


def _tell_return(tracker: ReturnTracker) -> str:
    return "-" if tracker.mean_return is None else f"{tracker.mean_return:.1f}"


def _to_clock(seconds: float | None) -> str:
    """Return m:ss, or h:mm:ss from one hour on."""
    if seconds is None:
        return "-:--"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
