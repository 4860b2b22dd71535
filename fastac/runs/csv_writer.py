"""The rows of `progress.jsonl` as one table, `progress.csv`."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from fastac.config import JsonValue
from fastac.runs.files import replace_file, reporting
from fastac.runs.writers import EvaluationRow, Row

_PERIOD_S = 1.0


class CsvWriter:
    """Appends each row; a row with a new column, such as one of the episodes' `info`, rewrites the table.

    A number that is missing or not finite is an empty cell.
    """

    def __init__(self, path: Path, rows_path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with the rows of `progress.jsonl`, so that a resumed run has each row once, whatever was there.

        Args:
            path: the table; replaced if it exists.
            rows_path: `progress.jsonl`, already cut to the checkpoint and open for new rows.
            clock: returns seconds; determines when to flush.

        Raises:
            RecordError: the table cannot be written.
        """
        self._path, self._clock, self._flushed_at = path, clock, clock()
        with reporting(path):
            self._columns = dict.fromkeys(key for row in _read_rows(rows_path) for key in row)
            self._rewrite(_read_rows(rows_path))

    def write(self, row: Row) -> None:
        """Append a row; it reaches the file within about a second."""
        with reporting(self._path):
            new = [key for key in row if key not in self._columns]
            if new:
                self._add_columns(new)
            self._table.writerow(_finite(row))
            if self._clock() - self._flushed_at >= _PERIOD_S:
                self.flush()

    def write_evaluation(self, row: EvaluationRow) -> None:
        """Do nothing: `evaluations.jsonl` holds it."""

    def write_summary(self, summary: Mapping[str, JsonValue]) -> None:
        """Do nothing: `summary.json` holds it."""

    def flush(self) -> None:
        """Write buffered rows to the operating system."""
        with reporting(self._path):
            self._file.flush()
        self._flushed_at = self._clock()

    def close(self) -> None:
        """Flush and close."""
        with reporting(self._path):
            self._file.close()

    def _add_columns(self, new: list[str]) -> None:
        self._file.close()
        self._columns |= dict.fromkeys(new)
        with self._path.open(encoding="utf-8", newline="") as old:
            self._rewrite(csv.DictReader(old))

    def _rewrite(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Replace the table by `rows`, and open it for more."""
        with replace_file(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(self._columns))
            if self._columns:
                table.writeheader()
            table.writerows(rows)
        self._file = self._path.open("a", encoding="utf-8", newline="")
        self._table = csv.DictWriter(self._file, list(self._columns))


def _read_rows(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _finite(row: Row) -> Row:
    return {key: value if value is None or math.isfinite(value) else None for key, value in row.items()}
