"""Records a run in progress: rows in its files, and a bar or lines on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing

from fastac.config import Config, JsonValue
from fastac.contract import Report
from fastac.runs.csv_writer import CsvWriter
from fastac.runs.progress import Bar, Evaluated, NullBar, open_bar
from fastac.runs.run_dir import RunDirectory
from fastac.runs.services import SERVICES, ServiceWriter
from fastac.runs.tracker import ReturnTracker
from fastac.runs.writers import EvaluationRow, ProgressWriter, TensorBoardWriter, Writer, progress_row


class Recorder:
    """Writes `progress.jsonl`, `evaluations.jsonl` and to the configured loggers, and displays the same data.

    Attributes:
        tracker: mean return and rates so far.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        tracker: ReturnTracker,
        resume_at: tuple[int, int] | None,
        verbose: bool,
    ) -> None:
        """Store the arguments; `resume_at` is the iteration and the env steps from which a resumed run continues."""
        self.tracker = tracker
        self._config, self._directory, self._resume_at, self._verbose = config, directory, resume_at, verbose
        self._writers: list[Writer] = []
        self._bar: Bar = NullBar()
        self._opened = ExitStack()

    def begin(self) -> None:
        """Open the files and drop their rows after `resume_at`.

        Raises:
            RecordError: a file cannot be written.
        """
        config, directory, resume_at = self._config, self._directory, self._resume_at
        with ExitStack() as opened:
            rows = ProgressWriter(directory.progress_path, resume_at=resume_at)
            writers: list[Writer] = [opened.enter_context(closing(rows))]
            if config.run.tensorboard:
                events = TensorBoardWriter(directory.tensorboard_path, config, resume_at and resume_at[1])
                writers.append(opened.enter_context(closing(events)))
            if "csv" in config.run.log:
                table = CsvWriter(directory.csv_path, directory.progress_path)
                writers.append(opened.enter_context(closing(table)))
            for name in SERVICES:
                if name in config.run.log:
                    service = ServiceWriter(name, config, directory, resume_at is not None)
                    writers.append(opened.enter_context(closing(service)))
            bar = open_bar(config.run.total_env_steps) if self._verbose else NullBar()
            self._bar = opened.enter_context(closing(bar))
            self._writers, self._opened = writers, opened.pop_all()

    def report(self, report: Report, action_std: float | None, is_news: bool) -> None:
        """Record a report; show but do not write it if it has no progress."""
        self.tracker.update(report)
        if is_news:
            row = progress_row(report, self.tracker, action_std)
            for writer in self._writers:
                writer.write(row)
        self._bar.update(report, self.tracker)

    def evaluating(self, played: int, episodes: int) -> None:
        """Show the progress of an evaluation."""
        self._bar.evaluating(played, episodes)

    def write_evaluation(self, row: EvaluationRow) -> None:
        """Write an evaluation's result."""
        for writer in self._writers:
            writer.write_evaluation(row)

    def show_evaluation(self, result: Evaluated) -> None:
        """Show an evaluation's result."""
        self._bar.evaluated(result)

    def write_summary(self, summary: Mapping[str, JsonValue]) -> None:
        """Write the metrics by which runs are compared."""
        for writer in self._writers:
            writer.write_summary(summary)

    def flush(self) -> None:
        """Write buffered rows."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Close all files, even if closing one of them raises; safe to call twice."""
        self._opened.close()
