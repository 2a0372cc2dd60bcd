"""Corrects words that are one slip away from a word of the training texts.

A word piece vocabulary knows a mistyped word only as fragments. The correction is that of a noisy channel with one
error (Kernighan, Church and Gale 1990): a letter too many, missing or wrong, or two neighbours swapped; a space left
out or mistyped. Only words that the vocabulary does not have are touched. Candidates are found by deletions, as
SymSpell does: two words one slip apart share a form with at most one letter deleted from each."""

from __future__ import annotations

from collections.abc import Sequence

MIN_LETTERS = 4
"""Shorter words are one slip away from too many others."""
MAX_LETTERS = 24
MAX_CORRECTIONS = 24
"""Of a text: a bound on the time that gibberish takes."""

_MIN_HALF = 2  # letters of each word on the two sides of a lost space


class Speller:
    """Corrects towards `words`, those of the training texts, the most frequent first."""

    def __init__(self, words: Sequence[str]) -> None:
        self._rank = {word: rank for rank, word in enumerate(words)}
        self._by_deletion: dict[str, list[str]] = {}
        for word in words:
            if len(word) >= MIN_LETTERS:
                for form in _deletions(word):
                    self._by_deletion.setdefault(form, []).append(word)

    def correct(self, word: str) -> str | None:
        """The word, or the two words, that one slip turned into `word`; None if there is none, or if it is too short,
        too long or no word to tell. Lower case."""
        if not MIN_LETTERS <= len(word) <= MAX_LETTERS or not word.isalpha():
            return None
        return self._nearest(word) or self._split(word)

    def _nearest(self, word: str) -> str | None:
        """The best word one slip away: one with the same first letter, and then the most frequent one."""
        candidates = {
            other for form in _deletions(word) for other in self._by_deletion.get(form, ()) if _one_slip(word, other)
        }
        if not candidates:
            return None
        return min(candidates, key=lambda other: (other[0] != word[0], self._rank[other]))

    def _split(self, word: str) -> str | None:
        """Two words whose space was left out, or replaced by a letter; the pair whose rarer word is most frequent."""
        pairs = [
            (word[:end], word[start:])
            for end in range(_MIN_HALF, len(word) - _MIN_HALF + 1)
            for start in (end, end + 1)
            if word[:end] in self._rank and len(word) - start >= _MIN_HALF and word[start:] in self._rank
        ]
        if not pairs:
            return None
        return " ".join(min(pairs, key=lambda pair: (max(self._rank[half] for half in pair), pair)))


def _deletions(word: str) -> set[str]:
    """The word, and the word without each of its letters."""
    return {word, *(word[:position] + word[position + 1 :] for position in range(len(word)))}


def _one_slip(word: str, other: str) -> bool:
    """Whether the words, which share a form with at most one letter deleted from each, are one slip apart."""
    if len(word) != len(other):
        return True
    wrong = [position for position, (a, b) in enumerate(zip(word, other, strict=True)) if a != b]
    if len(wrong) != 2:
        return len(wrong) <= 1
    first, second = wrong
    return second == first + 1 and word[first] == other[second] and word[second] == other[first]
