"""Why a text is routed as it is: how the router's confidence would change without each of its words.

Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2): each word is left out once and the text is routed
again. The result is valid for any router, whatever its model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dlp_core.router.features import clip
from dlp_core.router.router import Router

MAX_PIECES = 64
"""Maximum number of pieces to occlude; in longer texts, a piece is several consecutive words."""

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class WordEffect:
    """A word, or several consecutive ones, and its effect: the log-odds with it minus those without it."""

    text: str
    effect: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request is routed as it is: the deciding text, and its words in order."""

    text: str
    adapter: str | None
    """What the words speak for (+) or against (-): this adapter; None: any adapter at all, where none fits."""
    words: tuple[WordEffect, ...]


def explain_first(router: Router, texts: Sequence[str]) -> Explanation:
    """Explain the text that decides (see Router.route_first): for its likeliest adapter, or why none fits."""
    routings = router.route(texts)
    deciding = next((n for n, routing in enumerate(routings) if routing.fits), 0)
    adapter = routings[deciding].best if routings[deciding].fits else None
    return Explanation(texts[deciding], adapter, tuple(explain(router, texts[deciding], adapter)))


def explain(router: Router, text: str, adapter: str | None) -> list[WordEffect]:
    """The words of `text` in order. Positive effects favour `adapter`, negative ones another adapter or none; without
    an `adapter`, positive ones favour some adapter.

    Covers only the part of a long text that the router reads. Empty for a text of one word: what is left without it is
    no text, which tells nothing about the word.
    """
    text = clip(text)
    words = [match.span() for match in _WORD.finditer(text)]
    if len(words) < 2:
        return []
    size = -(-len(words) // MAX_PIECES)
    pieces = [(group[0][0], group[-1][1]) for group in (words[n : n + size] for n in range(0, len(words), size))]
    full, *occluded = router.log_odds([text, *(text[:start] + text[end:] for start, end in pieces)], adapter)
    return [
        WordEffect(text[start:end], round(float(full - odds), 3))
        for (start, end), odds in zip(pieces, occluded, strict=True)
    ]
