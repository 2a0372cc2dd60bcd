"""Markdown for numbers and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Lines = list[str]
"""The lines of a block of a page, usually a table."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Lines:
    """A table whose first column is text; the others are numbers, aligned to the right."""
    rule = "|---|" + "---:|" * (len(header) - 1)
    return [_row(header), rule, *(_row(row) for row in rows)]


def span(values: Iterable[float], form: str = ".2f") -> str:
    """The range of the values: "1.07 to 1.08", or one number if both ends format alike."""
    numbers = sorted(values)
    low, high = f"{numbers[0]:{form}}", f"{numbers[-1]:{form}}"
    return low if low == high else f"{low} to {high}"


def listed(values: Iterable[float], form: str = ".0f") -> str:
    """The values as a list: "39, 41 and 52"."""
    *first, last = (f"{value:{form}}" for value in values)
    return f"{', '.join(first)} and {last}" if first else last


def _row(cells: Sequence[object]) -> str:
    return f"|{'|'.join(f' {cell} ' if cell != '' else ' ' for cell in cells)}|"
