"""Aligned Markdown tables, which a terminal shows as well as a README; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text and aligned left, the others are numbers and aligned right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(_format_row(row, widths) for row in [header, rule, *rows])


def _format_row(row: Sequence[str], widths: Sequence[int]) -> str:
    sized = list(zip(row, widths, strict=True))
    cells = [cell.ljust(width) for cell, width in sized[:1]] + [cell.rjust(width) for cell, width in sized[1:]]
    return "| " + " | ".join(cells) + " |"
