"""Where a text may go from one task to the next: after a sentence, a line, "and", or a semicolon."""

from __future__ import annotations

import re

MAX_SPLITS = 6
"""Splits tried of a text, those nearest to its middle."""
MAX_CHARACTERS = 300
"""A longer text is one task with much to read, not two tasks."""

_MIN_WORDS = 2  # in each part
_LIST = re.compile(r"^\s*(?:\(\w\)|\w[.)]|[-*•])\s", re.MULTILINE)
_EMPTY_LINE = re.compile(r"\s*\n\s*\n\s*")
_SEAM = re.compile(r"[.?!]+\s+|\s*\n+\s*|[;,]?\s+(?:and|also|then|plus)\s+(?:(?:also|then)\s+)?|;\s*", re.IGNORECASE)


def splits(text: str) -> list[tuple[str, str]]:
    """The text in two parts, in each way that may separate two tasks; at most MAX_SPLITS, from first to last.
    Where there is a list, such as answers to choose from, only an empty line separates tasks."""
    if len(text) > MAX_CHARACTERS:
        return []
    middle = len(text) / 2
    seam = _EMPTY_LINE if _LIST.search(text) else _SEAM
    seams = [match.span() for match in seam.finditer(text)]
    seams = [
        (start, end)
        for start, end in seams
        if len(text[:start].split()) >= _MIN_WORDS and len(text[end:].split()) >= _MIN_WORDS
    ]
    nearest = sorted(seams, key=lambda seam: abs(seam[0] - middle))[:MAX_SPLITS]
    return [(text[:start], text[end:]) for start, end in sorted(nearest)]
