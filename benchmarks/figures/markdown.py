"""Numbers and tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Lines = list[str]
"""A block of a page: a table, in most cases."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Lines:
    """A table whose first column is text and whose others are numbers, which align to the right."""
    rule = "|---|" + "---:|" * (len(header) - 1)
    return [_row(header), rule, *(_row(row) for row in rows)]


def span(values: Iterable[float], form: str = ".2f") -> str:
    """The least and the most: "1.07 to 1.08", or one number where both look the same."""
    numbers = sorted(values)
    low, high = f"{numbers[0]:{form}}", f"{numbers[-1]:{form}}"
    return low if low == high else f"{low} to {high}"


def listed(values: Iterable[float], form: str = ".0f") -> str:
    """All of them: "39, 41 and 52"."""
    *first, last = (f"{value:{form}}" for value in values)
    return f"{', '.join(first)} and {last}" if first else last


def _row(cells: Sequence[object]) -> str:
    return f"|{'|'.join(f' {cell} ' if cell != '' else ' ' for cell in cells)}|"
