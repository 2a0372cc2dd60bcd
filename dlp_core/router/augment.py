"""Data augmentation: texts that users type but data sets lack. They are degraded, joined or out of scope.

All are made from the training rows and the word lists below.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from random import Random

JOINERS = ("\n\n", "\n", " ", "\nThen: ", " Also, ")

_OPTION = re.compile(r"\([A-H]\) |choice:")
_MIN_BARE_CHARS = 20
_MIN_CROP_WORDS = 12

_OPENINGS = ("", "please ", "can you ", "could you ", "hey, ", "i need you to ", "help me ", "i want to ", "hi! ")
_REQUESTS = tuple(
    "write a poem about|write a short story about|write a letter about|explain|summarise|translate|tell me about|"
    "give me ideas for|make a plan for|what is|who invented|how do i fix|what do you think of|list the best|"
    "recommend|draft an email about|write code for|debug|compare|review|when was|where can i find|why is".split("|")
)
_TOPICS = tuple(
    "the sea|my python script|ancient rome|my sister's birthday|this message|dinner tonight|the weather|monthly sales|"
    "vaccines|economics|a cover letter|peru|french grammar|my resume|a workout|black holes|jazz|a leaking tap|"
    "the stock market|tomato plants|a wedding speech|docker|climate change|learning guitar|my landlord|sleep|"
    "a budget|chess openings|electric cars|a job interview|bread|the moon landing|my garden|a sore back".split("|")
)
_CLOSINGS = ("", ".", "?", "!", " thanks", " in two sentences", " for a ten year old", ", step by step")
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
    """Make `text` look as if typed in a hurry: without its instruction, cropped, mistyped, or several of these."""
    draw = rng.random()
    if draw < 0.55:
        text = strip_instruction(text)
    elif draw < 0.65:
        text = crop(text, rng)
    if draw > 0.4:
        text = mistype(text, rng, rng.uniform(0.0, 0.09))
    return text


def join(first: str, second: str, rng: Random) -> str:
    return first + rng.choice(JOINERS) + second


def out_of_scope(texts: Sequence[str], rng: Random) -> str:
    """Make a text that belongs to no task: an everyday request, invented words, or shuffled pieces of rows."""
    kind = rng.randrange(4)
    if kind == 0:
        request = f"{rng.choice(_OPENINGS)}{rng.choice(_REQUESTS)} {rng.choice(_TOPICS)}{rng.choice(_CLOSINGS)}"
        return request.capitalize() if rng.random() < 0.5 else request
    if kind == 1:
        return " ".join("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(_random_length(rng)))
    if kind == 2:
        return " ".join(rng.choice(rng.choice(texts).split() or [""]) for _ in range(_random_length(rng)))
    return " ".join(_snippet(rng.choice(texts), rng) for _ in range(rng.randint(4, 9)))


def _random_length(rng: Random) -> int:
    """Number of words, 2 to 150, log-uniform."""
    return int(2 * 75 ** rng.random())


def _snippet(text: str, rng: Random) -> str:
    words = text.split()
    length = rng.randint(2, 14)
    start = rng.randrange(max(1, len(words) - length))
    return " ".join(words[start : start + length])
