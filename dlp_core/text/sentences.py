"""Finds where sentences start, as early as possible: at the first character of the next sentence.

    starts = SentenceStarts()
    starts.push("Dr. Smith paid 3.50")     # []
    starts.push(" dollars. He left.")      # [29]

Whether a sentence starts at a character depends only on the text up to that character, so the result is the same
however the text is split into pieces. sentencex splits prose (abbreviations, decimals, quotes, CJK). This file handles
what rules for prose do not cover: paragraphs, list items and headings start a sentence, a fenced code block is one.
"""

from __future__ import annotations

import re

import sentencex

_LINE_STARTERS = frozenset("-*+•#|>`~")
"""First characters of lines that start a sentence: list item, heading, table row, quotation, fence."""

_FENCES = ("```", "~~~")
_MARKER = re.compile(r"\(?(\d{1,3}|[A-Za-z])[.)]")
"""The number of a list item: the text after it belongs to the same sentence."""

_MAX_PROSE_CHARS = 4_000
"""Characters up to which a sentence is split as prose; anything longer is not prose."""

_MAX_UNCLOSED_CHARS = 300
"""Characters after which an unclosed bracket or quotation mark is ignored."""


class SentenceStarts:
    """Finds sentence starts in one growing text."""

    def __init__(self, language: str = "en") -> None:
        self._language = language
        self._length = 0
        self._open = ""  # the current sentence so far
        self._gap = ""  # whitespace since the last visible character
        self._line = ""  # the first visible characters of the current line
        self._fence = ""  # the fence of the open code block
        self._closed = False  # a code block ended with this line

    def push(self, text: str) -> list[int]:
        """Return the sentence starts that this piece determines, as offsets in all text pushed so far.

        The first sentence of a text is not reported: it starts where the text does.
        """
        starts = []
        for character in text:
            if character.isspace():
                self._gap += character
            else:
                if self._gap.count("\n") or not self._open:
                    self._line = ""
                if self._starts_at(character):
                    starts.append(self._length)
                    self._open, self._closed = "", False
                elif self._open:
                    self._open += self._gap
                self._open += character
                self._gap = ""
                self._follow_fence(character)
            self._length += 1
        return starts

    def _starts_at(self, character: str) -> bool:
        if not self._open or self._fence:
            return False
        lines = self._gap.count("\n")
        if lines > 1 or (lines and (self._closed or character in _LINE_STARTERS or character.isdigit())):
            return True
        if (
            self._open[-1].isalnum()
            or len(self._open) > _MAX_PROSE_CHARS
            or _MARKER.fullmatch(self._open)
            or self._in_pair()
        ):
            return False
        *_, last = sentencex.segment(self._language, self._open + self._gap + character)
        return bool(last == character)

    def _in_pair(self) -> bool:
        """Whether the text is inside recently opened brackets or a quotation."""
        recent = self._open[-_MAX_UNCLOSED_CHARS:]
        return recent.count('"') % 2 == 1 or any(
            recent.count(opening) > recent.count(closing) for opening, closing in ("()", "[]", "{}", "“”", "「」")
        )

    def _follow_fence(self, character: str) -> None:
        if len(self._line) < 3:
            self._line += character
            if self._line in _FENCES:
                if not self._fence:
                    self._fence = self._line
                elif self._line == self._fence:
                    self._fence, self._closed = "", True


def split(text: str, language: str = "en") -> list[tuple[int, int]]:
    """Split `text` into (start, end) of each sentence, without gaps: whitespace belongs to the sentence before it.

    Empty for a text without visible characters.
    """
    if not text.strip():
        return []
    starts = [0, *SentenceStarts(language).push(text)]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))
