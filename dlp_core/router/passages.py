"""Which part of a request is about which task: a mix for each sentence that knows the request.

A sentence alone says little about its task: "Who is right?" belongs to any. The router was trained on whole prompts,
so it is asked about whole prompts. A text is cut where a task may end, after a sentence, a line or a paragraph, and of
all ways to join neighbours into runs again, the best explains each run as a prompt of its own:

    best = argmax over ways to join    sum over runs  gain(run)  -  sum over two runs in a row  price(first, second)

    gain(run)  = clip(margin(run) + log p(label | run), 0, MOST_GAIN)    as log-odds: a prompt of its likeliest adapter,
                                                                         or of no task at all
    price      = CHANGE[what separates them], if they have different labels;  + STRANGE if one fits no adapter;
                 MOST_GAIN if they have the same one: what one run explains is not explained better by two

This is a segment model (semi-Markov: Sarawagi and Cohen 2004) with the request as the prior of its sentences: one run
is one task, and each further one has to earn its price. Sentences of one task stay together, because together they
look more like a prompt than apart, and sentences of two come apart, because together they look like none. CHANGE and
the other numbers are chosen on training rows by `python -m benchmarks.passages`.

Where all runs that fit have the request's own label, there is one passage, with the request's own routing: then a mix
for each sentence is the mix for the request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from dlp_core.router.router import Router
from dlp_core.router.routing import Passage, Routing
from dlp_core.text.sentences import split

Separator = Literal["paragraph", "line", "sentence"]
SEPARATORS: tuple[Separator, ...] = get_args(Separator)

_LINE = re.compile(r"\n\s*(?=\S)")
_OPTION = re.compile(r"\(\w{1,2}\)")
"""An answer to choose from: it belongs to what is before it."""
_NONE, _NO_LABEL = -1, -2
_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Prices:
    """In log-odds."""

    most_gain: float = 4.0
    """What a run earns that fits well; more certainty than that is hardly a reason for one run more."""
    beyond: float = 0.4
    """The share that still counts of what is beyond that: of two ways to divide a text that both fit, it tells the
    better one."""
    paragraph: float = 2.0
    line: float = 2.8
    sentence: float = 3.6
    """What another task costs after an empty line, a line, a sentence."""
    strange: float = 0.8
    """What it costs beside that if either fits no adapter."""

    def gain(self, odds: float) -> float:
        return min(max(odds, 0.0), self.most_gain) + self.beyond * max(odds - self.most_gain, 0.0)

    def change(self, separator: Separator) -> float:
        return {"paragraph": self.paragraph, "line": self.line, "sentence": self.sentence}[separator]


PRICES = Prices()


def passages_first(router: Router, texts: Sequence[str]) -> list[Passage]:
    """The passages of the first of the texts that route a request (Router.route_first). If another one decides, what it
    adds is the instruction for all of the first: then there is one passage, with that routing."""
    [routing] = router.route_first([texts])
    if routing.turn:
        return [Passage(0, len(texts[0]), routing)]
    return passages(router, texts[0], routing)


def passages(router: Router, text: str, request: Routing, *, prices: Prices = PRICES) -> list[Passage]:
    """Divide `text`, which was routed as `request`, into passages without gaps; one with the request's own routing
    where no part is about another task. Accepts any text."""
    whole = [Passage(0, len(text), request)]
    runs = read(router, text)
    spans = [] if runs is None else [(runs.cuts[first], runs.cuts[last]) for first, last in runs.best(prices)]
    if len(spans) < 2:
        return whole
    routings = router.route([text[start:end] for start, end in spans])
    labels = {routing.best for routing in routings if routing.fits}
    if not labels or (request.fits and labels == {request.best}):
        return whole
    return [Passage(start, end, routing) for (start, end), routing in zip(spans, routings, strict=True)]


def read(router: Router, text: str) -> Runs | None:
    """What the router makes of every run of parts of a text; None if there is but one part, or one adapter."""
    cuts = starts(text, most=router.encoder.most_parts)
    if len(cuts) < 2 or len(router.labels) < 2:
        return None
    cuts.append(len(text))
    parts = [text[start:end] for start, end in pairwise(cuts)]
    runs = [(first, last) for last in range(1, len(cuts)) for first in range(last)]
    probabilities, margins = router.read_runs(parts, runs)
    odds = margins + np.log(np.maximum(probabilities.max(axis=1), _TINY))
    labels = np.where(margins > 0, probabilities.argmax(axis=1), _NONE)
    seams = [separator(text, start) for start in cuts[:-1]]
    return Runs(cuts, seams, dict(zip(runs, zip(labels.tolist(), odds.tolist(), strict=True), strict=True)))


@dataclass(frozen=True, slots=True)
class Runs:
    """All runs of one text. Filled by `read`."""

    cuts: list[int]
    """Where the parts start, and where the last one ends."""
    separators: list[Separator]
    """What is before each part."""
    found: dict[tuple[int, int], tuple[int, float]]
    """Of the parts [first, last), the likeliest adapter's number, or _NONE, and the log-odds that they are its prompt.
    In the order of their ends."""

    def best(self, prices: Prices) -> list[tuple[int, int]]:
        """The runs of parts that explain the text best, by dynamic programming: of each end and label, the best way to
        get there."""
        ways: list[dict[int, tuple[float, int, int]]] = [{_NO_LABEL: (0.0, 0, _NO_LABEL)}]
        for (first, last), (label, odds) in self.found.items():
            if last == len(ways):
                ways.append({})
            score, before = max(
                (score - self._price(first, earlier, label, prices), earlier)
                for earlier, (score, _, _) in ways[first].items()
            )
            score += prices.gain(odds)
            if label not in ways[last] or score > ways[last][label][0]:
                ways[last][label] = score, first, before
        last = len(ways) - 1
        label = max(ways[last], key=lambda label: ways[last][label][0])
        spans = []
        while last:
            _, first, before = ways[last][label]
            spans.append((first, last))
            last, label = first, before
        return self._joined(spans[::-1])

    def _joined(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The spans without a seam inside a task: where two in a row are of one adapter, so is what they make."""
        found: list[tuple[int, int]] = []
        for span in spans:
            joined = (found[-1][0], span[1]) if found else span
            if found and len({self.found[run][0] for run in (found[-1], span, joined)}) == 1:
                found[-1] = joined
            else:
                found.append(span)
        return found

    def _price(self, part: int, earlier: int, label: int, prices: Prices) -> float:
        if part == 0:
            return 0.0
        if earlier == label:
            return prices.most_gain
        return prices.change(self.separators[part]) + prices.strange * (_NONE in (earlier, label))


def starts(text: str, *, most: int) -> list[int]:
    """Where a passage may start, at most `most` places, 0 among them; empty for a text without visible characters. Of
    more, those after empty lines come first, then those of lines; of the same kind, they are spread evenly."""
    found = {start for start, _ in split(text)}
    if not found:
        return []
    found |= {match.end() for match in _LINE.finditer(text)}
    found = {start for start in found if start and not _OPTION.match(text, start)}
    kinds = {start: separator(text, start) for start in sorted(found)}
    kept = [0]
    for kind in SEPARATORS:
        same = [start for start, found_kind in kinds.items() if found_kind == kind]
        room = most - len(kept)
        kept += same if len(same) <= room else [same[number * len(same) // room] for number in range(room)]
    return sorted(kept)


def separator(text: str, start: int) -> Separator:
    """What ends before `start`."""
    end = start
    while end and text[end - 1].isspace():
        end -= 1
    lines = text.count("\n", end, start)
    return "paragraph" if lines > 1 else "line" if lines else "sentence"
