"""Aligned Markdown tables, as the package writes them."""

from fastac.text import format_table

__all__ = ["format_table"]
