"""Multiple choice as the rows write it: the question ends in lines `(A) ...`, `(B) ...`; the answer is one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

_OPTION = re.compile(r"\(([A-Z])\) ?(.*)")
_NAMED = re.compile(r"\(([A-Z])\)")
_BARE = re.compile(r"\(?([A-Z])[).:]?")


def find_options(text: str) -> dict[str, str]:
    """Letter to text of the options that `text` ends in; empty if it ends in none. A, B, C ... without a gap."""
    found: list[tuple[str, str]] = []
    continued: list[str] = []
    for line in reversed(text.rstrip().splitlines()):
        if match := _OPTION.fullmatch(line.strip()):
            found.append((match[1], "\n".join([match[2], *reversed(continued)]).strip()))
            continued = []
            if match[1] == "A":
                break
        else:  # an option of several lines
            continued.append(line)
    found.reverse()
    letters = [letter for letter, _ in found]
    if len(found) < 2 or letters != [chr(ord("A") + number) for number in range(len(found))]:
        return {}
    return dict(found)


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option an answer gives, or None: the first `(X)` of one, a bare letter, or an option's text."""
    answer = answer.strip()
    named = [match[1] for match in _NAMED.finditer(answer) if match[1] in options]
    if named:
        return named[0]
    if (bare := _BARE.fullmatch(answer)) and bare[1] in options:
        return bare[1]
    said = _plain(answer)
    return next((letter for letter, text in options.items() if said and _plain(text) == said), None)


def written(letter: str, options: Mapping[str, str]) -> str:
    """An option as an answer gives it."""
    return f"({letter}) {options[letter]}"


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
