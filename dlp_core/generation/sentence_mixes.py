"""One mix per sentence: of the prompt when it is read, of the completion as it is written (DLP-LoRA, section 3).

Sentences get their mix by passage (dlp_core/router/passages.py): the run of sentences that are about one task. A
request about one task has one passage, and then its plan is the one it has with one mix for all of it.

    prompt       each passage of the text that routes the request has its own mix; what is before, and the words of a
                 chat template, belong to the passage before them, or the first
    completion   answers passages in their order. It starts with the first one that fits an adapter, or with that of the
                 line numbered 1, and goes on to the next at a line with the next number, or, where lines are not
                 numbered, after an empty line

A bare prompt's completion continues the prompt's last passage, with its mix. A passage that would need more adapters
than the engine can hold for one request keeps the mix before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dlp_core.engine.request import Plan
from dlp_core.mix import Mix
from dlp_core.router import Passage, Routing
from dlp_core.router.passages import separator
from dlp_core.text.sentences import SentenceStarts

if TYPE_CHECKING:
    from dlp_core.text.codec import Prompt, TextStream

Divide = Callable[[Sequence[str]], list[Passage]]
"""The passages of the first of the texts that route a request: dlp_core.router.passages.passages_first."""

_NUMBER = re.compile(r"\(?(\d{1,3})")
_ITEM = re.compile(r"^[ \t]*\(?(\d{1,3})[.)]\s", re.MULTILINE)


class SentenceMixes:
    """Plans requests. `choose` turns a routing into a mix; `max_adapters` limits the adapters per request."""

    def __init__(self, divide: Divide, choose: Callable[[Routing], Mix], *, max_adapters: int) -> None:
        self._divide = divide
        self._choose = choose
        self._max_adapters = max_adapters

    def plan(self, prompt: Prompt, request: Sequence[str], completion: TextStream) -> Plan:
        """The plan of one request. `request` holds the texts that route the entire request; `completion` is a separate
        stream that the plan's follower uses to read the completion."""
        found = self._divide(request)
        turn = _turn_of(prompt, request[0])
        if len(found) < 2 or turn is None:
            return Plan.of(self._choose(found[0].routing))
        mixes = self._affordable([self._choose(passage.routing) for passage in found])
        skipped = len(request[0]) - len(request[0].lstrip()) if prompt.is_chat else 0
        changes = [(turn[0] + max(passage.start - skipped, 0), mix) for passage, mix in zip(found, mixes, strict=True)]
        answered = _answered(request[0], found, mixes)
        if prompt.is_chat:
            changes.append((prompt.turns[-1][1], answered[0]))
        spans: list[tuple[int, Mix]] = []
        for offset, mix in changes:
            position = prompt.token_at(offset) if spans else 0
            if spans and spans[-1][0] == position:  # one token ends a passage and starts the next
                spans.pop()
            if not spans or spans[-1][1] != mix:
                spans.append((position, mix))
        return Plan(tuple(spans), _follower(answered, completion) if prompt.is_chat and len(answered) > 1 else None)

    def _affordable(self, mixes: Sequence[Mix]) -> list[Mix]:
        """The mixes, each with its predecessor in its place if it needs too many adapters beside those before."""
        kept: list[Mix] = []
        used: set[str] = set()
        for mix in mixes:
            kept.append(kept[-1] if kept and len(used | set(mix.names)) > self._max_adapters else mix)
            used |= set(kept[-1].names)
        return kept


def _turn_of(prompt: Prompt, text: str) -> tuple[int, int] | None:
    """Where in the prompt the text is that routes the request."""
    wanted = text.strip() if prompt.is_chat else text
    return next((turn for turn in reversed(prompt.turns) if prompt.text[slice(*turn)] == wanted), None)


def _answered(text: str, found: Sequence[Passage], mixes: Sequence[Mix]) -> list[Mix]:
    """The mixes of what is to be answered, in order: of the numbered lines if there are some, else of the passages that
    fit an adapter, those of one mix in a row once."""
    numbered: list[int] = []
    for item in _ITEM.finditer(text):
        if int(item[1]) == len(numbered) + 1:
            numbered.append(item.start(1))
    if len(numbered) > 1:
        return [
            next(mix for passage, mix in zip(found, mixes, strict=True) if start < passage.end) for start in numbered
        ]
    fitting = [mix for passage, mix in zip(found, mixes, strict=True) if passage.routing.fits]
    return [mix for number, mix in enumerate(fitting) if number == 0 or mix != fitting[number - 1]]


def _follower(answered: Sequence[Mix], completion: TextStream) -> Callable[[int], Mix | None]:
    starts = SentenceStarts()
    written, at = "", 0

    def follow(token: int) -> Mix | None:
        nonlocal written, at
        piece = completion.push([token])
        written += piece
        for start in starts.push(piece):
            if at + 1 < len(answered) and _goes_on(written, start, at + 1):
                at += 1
                return answered[at] if answered[at] != answered[at - 1] else None
        return None

    return follow


def _goes_on(written: str, start: int, answers: int) -> bool:
    """Whether the sentence that starts there is about the next task, after so many answers."""
    if _ITEM.match(written):
        number = _NUMBER.match(written, start)
        return number is not None and str(answers + 1).startswith(number[1])
    return separator(written, start) == "paragraph"
