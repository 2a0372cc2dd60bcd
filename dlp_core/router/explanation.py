"""Why a text is routed as it is: how much surer or less sure the router would be without each of its words.

Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2): every word is left out once, and the router is asked
again. What it says holds for this router whatever it is made of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dlp_core.router.features import clip
from dlp_core.router.router import Router

MOST = 64
"""Pieces a text is cut into; of a longer one, several words in a row are left out together."""

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class WordEffect:
    """A word, or several in a row, and its effect: the log-odds of the adapter with it less those without it."""

    text: str
    effect: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request is routed as it is: the text that decided, the adapter it is about, and its words in order."""

    text: str
    adapter: str
    words: tuple[WordEffect, ...]


def explain_first(router: Router, texts: Sequence[str]) -> Explanation:
    """Of the text that decides (see Router.route_first) and its likeliest adapter."""
    routings = router.route(texts)
    decides = next((n for n, routing in enumerate(routings) if routing.fits), 0)
    adapter = routings[decides].best
    return Explanation(texts[decides], adapter, tuple(explain(router, texts[decides], adapter)))


def explain(router: Router, text: str, adapter: str) -> list[WordEffect]:
    """The words of `text` in their order. Positive ones speak for `adapter`, negative ones for another or for none.

    Of a text that is longer than what the router reads, the part it reads.
    """
    text = clip(text)
    words = [match.span() for match in _WORD.finditer(text)]
    if not words:
        return []
    size = -(-len(words) // MOST)
    pieces = [(group[0][0], group[-1][1]) for group in (words[n : n + size] for n in range(0, len(words), size))]
    whole, *without = router.log_odds([text, *(text[:start] + text[end:] for start, end in pieces)], adapter)
    return [
        WordEffect(text[start:end], round(float(whole - odds), 3))
        for (start, end), odds in zip(pieces, without, strict=True)
    ]
