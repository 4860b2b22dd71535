"""The progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

from fastac.contract import Report
from fastac.records.tracker import ReturnTracker

_PERIOD_S = 0.1


class Bar(Protocol):
    """Shows how far a run is."""

    def update(self, report: Report, tracker: ReturnTracker) -> None:
        """Show an iteration; `tracker` has taken `report` in already."""

    def close(self) -> None:
        """Show the latest and leave the terminal as it was; safe to call twice."""


class NullBar:
    """Shows nothing."""

    def update(self, report: Report, tracker: ReturnTracker) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class ProgressBar:
    """Steps, rate, return and time left in one line on stderr.

    A redraw costs 0.5 ms, so there are at most ten a second; `update` between them costs 0.2 us.
    """

    def __init__(self, total_env_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw an empty bar.

        Args:
            total_env_steps: where the bar is full.
            clock: seconds, for the redraws.
        """
        # Imported here because a run without a terminal need not pay the 0.1 s.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._total = total_env_steps
        self._clock = clock
        self._next_at = clock()
        self._latest: tuple[Report, ReturnTracker] | None = None
        self._progress = Progress(
            BarColumn(bar_width=20),  # a line short of 80 columns, so that the "^C" a terminal prints fits
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
            console=Console(stderr=True),
            auto_refresh=False,  # no thread: it would take turns with training
            redirect_stdout=sys.stdout.isatty(),  # lines printed above the bar; a piped stdout stays a pipe
        )
        self._task = self._progress.add_task("", total=total_env_steps, text="starting")
        self._progress.start()

    def update(self, report: Report, tracker: ReturnTracker) -> None:
        """Show an iteration if the last redraw is a tenth of a second ago, else keep it for `close`."""
        self._latest = (report, tracker)
        if self._clock() >= self._next_at:
            self._draw(report, tracker)
            self._next_at = self._clock() + _PERIOD_S

    def close(self) -> None:
        """Show the latest and leave the terminal as it was."""
        if self._latest is not None:
            self._draw(*self._latest)
            self._latest = None
        self._progress.stop()

    def _draw(self, report: Report, tracker: ReturnTracker) -> None:
        sps = tracker.sps_window
        left_s = (self._total - report.env_steps) / sps if sps > 0.0 else None
        mean_return = "-" if tracker.mean_return is None else f"{tracker.mean_return:.1f}"
        text = (
            f"{shorten(report.env_steps)}/{shorten(self._total)} steps  {shorten(sps)} sps  "
            f"return {mean_return}  {_to_clock(left_s)} left"
        )
        self._progress.update(self._task, completed=report.env_steps, text=text, refresh=True)


def open_bar(total_env_steps: int) -> Bar:
    """Return a bar, or a silent one where stderr is not a terminal."""
    return ProgressBar(total_env_steps) if sys.stderr.isatty() else NullBar()


def shorten(number: float) -> str:
    """Return a number with three digits and a unit, e.g. 123k or 1.2M."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5 or unit == "G":
            break
        number /= 1000.0
    return f"{number:.3g}{unit}"


def _to_clock(seconds: float | None) -> str:
    """Return m:ss, or h:mm:ss from an hour on."""
    if seconds is None:
        return "-:--"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
