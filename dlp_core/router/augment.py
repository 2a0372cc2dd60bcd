"""Data augmentation: texts that users type but data sets lack. They are degraded, reworded or meaningless."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from random import Random

_OPTION = re.compile(r"\([A-H]\) |choice:")
_MIN_BARE_CHARS = 20
_MIN_CROP_WORDS = 12

_OPENINGS = tuple(
    "|please|can you|could you please|would you|hey,|hi there,|ok so|i need you to|i'd like you to|quick one:".split(
        "|"
    )
)
_BY_LENGTH = sorted(filter(None, _OPENINGS), key=len, reverse=True)
_CLOSES = ("", " please", " thanks", " thank you!", ", asap", " if you can")
_SYLLABLES = "ba ke li mo nu ra si to ve wa za chi sho pre tran ver dis con ing ed ly er ou ght str y qu x".split()


def strip_instruction(text: str) -> str:
    """Remove the first line and the answer options, unless almost nothing would remain."""
    kept = "\n".join(line for line in text.split("\n")[1:] if not _OPTION.match(line)).strip()
    return kept if len(kept) >= _MIN_BARE_CHARS else text


def mistype(text: str, rng: Random, rate: float) -> str:
    """Replace about `rate` of the characters by random letters; one in six of those is dropped instead."""
    letters = list(text)
    for position in range(len(letters)):
        if rng.random() < rate:
            letters[position] = "" if rng.random() < 1 / 6 else rng.choice(string.ascii_lowercase)
    return "".join(letters)


def crop(text: str, rng: Random) -> str:
    """Pick a contiguous part of `text` with at least half of its words."""
    words = text.split(" ")
    if len(words) < _MIN_CROP_WORDS:
        return text
    length = rng.randint(len(words) // 2, len(words))
    start = rng.randrange(len(words) - length + 1)
    return " ".join(words[start : start + length])


def degrade(text: str, rng: Random) -> str:
    """Make `text` look as if typed in a hurry: mistyped or, if it has several lines, without its instruction or
    cropped, or several of these."""
    if "\n" not in text:
        return mistype(text, rng, rng.uniform(0.01, 0.1))
    draw = rng.random()
    if draw < 0.55:
        text = strip_instruction(text)
    elif draw < 0.65:
        text = crop(text, rng)
    if draw > 0.4:
        text = mistype(text, rng, rng.uniform(0.0, 0.09))
    return text


def reword(text: str, rng: Random) -> str:
    """Ask for the same with another opening and another close, as far as `text` begins with an opening that it
    knows."""
    opening, close = rng.choice(_OPENINGS), rng.choice(_CLOSES)
    bare = text.strip()
    known = next((start for start in _BY_LENGTH if bare.lower().startswith(start + " ")), None)
    if known is not None:
        bare = bare[len(known) + 1 :].lstrip()
    return f"{opening} {bare}{close}".strip()


def noise(texts: Sequence[str], rng: Random) -> str:
    """Make a text that means nothing: invented words, words of many rows, or snippets of many rows."""
    kind = rng.randrange(3)
    if kind == 0:
        return " ".join(invented_word(rng) for _ in range(_random_length(rng)))
    if kind == 1:
        return " ".join(rng.choice(rng.choice(texts).split() or [""]) for _ in range(_random_length(rng)))
    return " ".join(_snippet(rng.choice(texts), rng) for _ in range(rng.randint(4, 9)))


def invented_word(rng: Random) -> str:
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4)))


def _random_length(rng: Random) -> int:
    """Number of words, 2 to 150, log-uniform."""
    return int(2 * 75 ** rng.random())


def _snippet(text: str, rng: Random) -> str:
    words = text.split()
    length = rng.randint(2, 14)
    start = rng.randrange(max(1, len(words) - length))
    return " ".join(words[start : start + length])
