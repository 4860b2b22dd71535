"""Text for a terminal, including log lines: tables, and lines wrapped to the terminal's width."""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_WIDTH = 80  # of a terminal that does not report its width


def width_of(stream: TextIO) -> int | None:
    """Return a terminal's columns (the variable COLUMNS takes precedence); None if the stream is not a terminal."""
    if not stream.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _WIDTH
    except (OSError, ValueError):  # a stream without a descriptor
        return _WIDTH


def fit(text: str, stream: TextIO, hang: int = 0) -> str:
    """Break the lines of `text` between words, to fit the terminal behind `stream`.

    Words wider than the terminal, such as paths, stay whole. If the stream is not a terminal, the text is unchanged.

    Args:
        text: one or more lines; continuation lines keep the leading spaces of their line.
        stream: the output stream.
        hang: additional indentation of continuation lines, in columns.
    """
    width = width_of(stream)
    return text if width is None else "\n".join(_break(line, width, hang) for line in text.split("\n"))


def fit_command(command: str, stream: TextIO, indent: int = 2) -> str:
    r"""Break a shell command before its flags, with a `\` at each break, so that it can be copied; indent it."""
    width, lines = width_of(stream), [""]
    for part in re.split(r" (?=--)", command):
        if width is not None and lines[-1] and indent + len(lines[-1]) + len(part) + 3 > width:
            lines.append("    " + part)
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(" " * indent + line for line in lines)


def tell_us(us: float) -> str:
    """Return microseconds in three digits, in the unit that suits them."""
    return f"{us:.3g} us" if us < 1e3 else f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table: the first column is text, and the others are numbers."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(_format_row(row, widths) for row in [header, rule, *rows])


def _format_row(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "| " + " | ".join(cells) + " |"


def _break(line: str, width: int, hang: int) -> str:
    if len(line) <= width:
        return line
    begins = len(line) - len(line.lstrip(" "))
    parts = textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * (begins + hang),
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(parts)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes the log to the current `sys.stderr`: a progress bar replaces it, to print lines above itself."""

    def __init__(self) -> None:
        """Start with the current stderr."""
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Break lines between words."""
        return fit(super().format(record), sys.stderr)


@contextmanager
def log_on_stderr() -> Iterator[None]:
    """Show fastac's log, level info and above, on stderr within the block, unless logging has been set up."""
    log = logging.getLogger("fastac")
    if log.hasHandlers():
        yield
        return
    handler, level = StderrHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
