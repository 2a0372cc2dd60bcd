"""Multiple choice in rows: the question ends in lines `(A) ...`, `(B) ...`; the answer is one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

_OPTION = re.compile(r"\(([A-Z])\) ?(.*)")
_NAMED = re.compile(r"\(([A-Z])\)")
_BARE = re.compile(r"\(?([A-Z])[).:]?")


def find_options(text: str) -> dict[str, str]:
    """The options that `text` ends in, letter to text; empty if it ends in none. Letters run A, B, C without gaps."""
    options: list[tuple[str, str]] = []
    continuation: list[str] = []
    for line in reversed(text.rstrip().splitlines()):
        if match := _OPTION.fullmatch(line.strip()):
            options.append((match[1], "\n".join([match[2], *reversed(continuation)]).strip()))
            continuation = []
            if match[1] == "A":
                break
        else:  # an option that spans several lines
            continuation.append(line)
    options.reverse()
    letters = [letter for letter, _ in options]
    if len(options) < 2 or letters != [chr(ord("A") + number) for number in range(len(options))]:
        return {}
    return dict(options)


def parse_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that `answer` names, or None: by its first valid `(X)`, a bare letter, or an option's
    text."""
    answer = answer.strip()
    named = [match[1] for match in _NAMED.finditer(answer) if match[1] in options]
    if named:
        return named[0]
    if (bare := _BARE.fullmatch(answer)) and bare[1] in options:
        return bare[1]
    normalized = _normalize(answer)
    return next((letter for letter, text in options.items() if normalized and _normalize(text) == normalized), None)


def format_option(letter: str, options: Mapping[str, str]) -> str:
    """An option in the form of an answer: `(X) text`."""
    return f"({letter}) {options[letter]}"


def _normalize(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
