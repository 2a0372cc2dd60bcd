"""Where sentences start, said as soon as it can be known: at the first character of the next one.

    ends = SentenceStarts()
    ends.push("Dr. Smith paid 3.50")     # []
    ends.push(" dollars. He left.")      # [29]

Whether a sentence starts at a character depends on the text up to that character alone, so the answer is the same
however the text was cut into pieces. Prose is split by sentencex (abbreviations, decimals, quotes, CJK); what prose
rules do not see is decided here: paragraphs, list items and headings start a sentence, a fenced code block is one.
"""

from __future__ import annotations

import re

import sentencex

_LINE_STARTERS = frozenset("-*+•#|>`~")
"""First characters of a line that starts something new: list item, heading, table row, quotation, fence."""

_FENCES = ("```", "~~~")
_MARKER = re.compile(r"\(?(\d{1,3}|[A-Za-z])[.)]")
"""A list item's number: what follows belongs to it."""

_LONGEST = 4_000
"""Characters of one sentence that prose rules look at; what is longer is no prose."""

_ASIDE = 300
"""Characters after which a bracket or quotation mark that was never closed is forgotten."""


class SentenceStarts:
    """Follows one text as it grows."""

    def __init__(self, language: str = "en") -> None:
        self._language = language
        self._length = 0
        self._open = ""  # of the paragraph: from the start of the current sentence
        self._gap = ""  # whitespace since the last visible character
        self._line = ""  # the first visible characters of the current line
        self._fence = ""  # of the code block that is open
        self._closed = False  # a code block ended with this line

    def push(self, text: str) -> list[int]:
        """Offsets in all text pushed so far at which a sentence starts, as far as this piece decides it.

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
        if self._open[-1].isalnum() or len(self._open) > _LONGEST or _MARKER.fullmatch(self._open) or self._inside():
            return False
        *_, last = sentencex.segment(self._language, self._open + self._gap + character)
        return bool(last == character)

    def _inside(self) -> bool:
        """Within brackets or a quotation that was opened not long ago."""
        recent = self._open[-_ASIDE:]
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
    """Start and end of each sentence of `text`, without gaps: whitespace belongs to the sentence before it.

    Empty for a text without a visible character.
    """
    if not text.strip():
        return []
    starts = [0, *SentenceStarts(language).push(text)]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))
