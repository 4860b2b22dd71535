"""The progress bar, and the lines where there is no terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest
from report_support import Clock, collected, make_report

from fastac.contract import Episode, Phases, Report
from fastac.runs.progress import Bar, Evaluated, ProgressBar, ProgressLines, open_bar, shorten
from fastac.runs.tracker import ReturnTracker


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal (not as a fixture: pytest puts its own stderr back before the test)."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_without_a_terminal_there_is_a_line_per_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, tracker = io.StringIO(), ReturnTracker()
    monkeypatch.setattr(sys, "stderr", stderr)
    bar: Bar = open_bar(20_000)
    assert isinstance(bar, ProgressLines)
    for k in range(1, 10):
        tracker.update(make_report(k, (Episode(9.5, 5),)))
        bar.update(make_report(k), tracker)
    assert stderr.getvalue() == ""
    bar.evaluating(3, 10)
    bar.evaluated(Evaluated(900, 12.25, 1.5, 20.0, 0.5))
    bar.close()
    (line,) = stderr.getvalue().splitlines()
    for fact in ("900 of 20k steps", "200 steps/s", "return     9.5", "evaluation    12.2 +- 1.5", "best    20.0"):
        assert fact in line
    assert len(line) <= 100


def test_without_evaluations_in_between_there_are_lines_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, tracker = io.StringIO(), ReturnTracker()
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = open_bar(4000)
    for k in range(1, 41):
        tracker.update(make_report(k))
        bar.update(make_report(k), tracker)
    assert len(stderr.getvalue().splitlines()) == 8  # a report comes after 100 steps, a line beyond 400


def test_the_bar_shows_an_evaluation_the_best_so_far_and_a_time_left_that_includes_them(monkeypatch) -> None:
    terminal, clock, tracker = open_terminal(monkeypatch), Clock(), ReturnTracker()
    bar = ProgressBar(1_200_000, clock)
    report = Report(1, 400_000, 0, 0, 0, collected((Episode(123.4, 5),)), 4.0, Phases())
    tracker.update(report)
    bar.update(report, tracker)
    clock.now += 1.0
    bar.evaluating(43, 100)
    assert "400k/1.2M steps  evaluating 43/100  0:08 left" in terminal.getvalue()
    bar.evaluated(Evaluated(400_000, 450.0, 1.0, 480.0, 2.0))
    clock.now += 1.0
    bar.update(report, tracker)
    bar.close()
    text = terminal.getvalue()
    assert "400k/1.2M steps  100k steps/s  return 123.4  best 480.0  0:12 left" in text
    drawn = text.splitlines()[-1].split("\r\x1b[2K")
    assert all(len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)) < 80 for line in drawn)


def test_bar_shows_progress_at_most_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock, tracker = open_terminal(monkeypatch), Clock(), ReturnTracker()
    bar = ProgressBar(1_200_000, clock)
    draws = []
    for k in range(1, 41):
        report = Report(k, k * 10_000, 0, 0, 0, collected((Episode(9.5, 5),)), k / 10, Phases())
        tracker.update(report)
        before = terminal.tell()
        bar.update(report, tracker)
        draws.append(terminal.tell() > before)
        clock.now += 1 / 32
    assert draws == [k % 4 == 0 for k in range(40)]
    bar.close()
    bar.close()
    text = terminal.getvalue()
    assert "400k/1.2M steps  100k steps/s  return 9.5  0:08 left" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is back


def test_bar_before_any_episode_and_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    bar = open_bar(50)
    assert isinstance(bar, ProgressBar)
    tracker = ReturnTracker()
    bar.update(Report(0, 0, 0, 0, 0, collected(()), 0.0, Phases()), tracker)
    tracker.update(make_report(1))
    bar.update(make_report(1), tracker)
    bar.close()
    assert "return -  -:-- left" in terminal.getvalue()
    assert "100/50 steps  200 steps/s  return -  0:00 left" in terminal.getvalue()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1k"),
        (1234, "1.23k"),
        (123_456, "123k"),
        (999_600, "1M"),
        (1.2e6, "1.2M"),
        (5e12, "5e+03G"),
    ],
)
def test_short_numbers(number: float, text: str) -> None:
    assert shorten(number) == text
