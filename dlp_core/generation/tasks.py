"""A message of several tasks, answered one task at a time: each passage as a message of its own.

    message     cron for every 10 minutes            answered as       cron for every 10 minutes     under cron
                                                                        the 4th of july 1776          under iso_date
                the 4th of july 1776                  joined by         an empty line

An adapter that was trained on one question at a time hardly answers the second of two: it reads the first one as well
(docs/evaluation.md). Apart, it reads what it was trained on. What one passage says of another is lost, so a request
asks for this. The conversation before the message goes before each of its tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dlp_core.bank.source import unqualified
from dlp_core.mix import Mix, Span
from dlp_core.router import Passage
from dlp_core.text.chat import Message

if TYPE_CHECKING:
    from dlp_core.engine.request import Plan
    from dlp_core.text.codec import Prompt

BETWEEN = "\n\n"
"""What stands between two answers."""

_ITEM = re.compile(r"\A\(?\d{1,3}[.)]\s+")


@dataclass(frozen=True, slots=True)
class Task:
    """One of the tasks of a message, as a conversation of its own."""

    messages: tuple[Message, ...]
    plan: Callable[[Prompt], Plan]


def divided(
    messages: Sequence[Message], found: Sequence[Passage], choose: Callable[[Passage], Mix]
) -> list[tuple[tuple[Message, ...], Mix]]:
    """The conversations that answer the passages of the last message, each with its mix; none where the last message
    is not the user's, or its passages that fit an adapter all have one mix. Numbers of a list go."""
    text = messages[-1].content
    mixes = [choose(passage) for passage in found]
    fitting = {mix for passage, mix in zip(found, mixes, strict=True) if passage.routing.fits}
    if messages[-1].role != "user" or found[-1].end != len(text) or len(fitting) < 2:
        return []
    pieces = [text[passage.start : passage.end].strip() for passage in found]
    return [
        ((*messages[:-1], replace(messages[-1], content=_ITEM.sub("", piece, count=1))), mix)
        for piece, mix in zip(pieces, mixes, strict=True)
    ]


class JoinedSpans:
    """The spans of all tasks: those of the prompts in order, then those of the answers. The spans of a prompt are what
    its plan says until they are set."""

    def __init__(self, prompts: Sequence[tuple[int, Plan]]) -> None:
        """The tokens of each prompt, and its plan."""
        self._tokens = [tokens for tokens, _ in prompts]
        self._prompts = [_spans_of(plan, tokens) for tokens, plan in prompts]
        self._answers: list[list[Span]] = [[] for _ in prompts]

    def prompt(self, number: int) -> list[Span]:
        """Those of the prompt of this task alone."""
        return self._prompts[number]

    def set(self, number: int, spans: Sequence[Span]) -> None:
        """What ran in this task, of its own prompt and answer together."""
        tokens = self._tokens[number]
        self._prompts[number] = [replace(span, end=min(span.end, tokens)) for span in spans if span.start < tokens]
        self._answers[number] = [
            Span(max(span.start - tokens, 0), span.end - tokens, span.mix) for span in spans if span.end > tokens
        ]

    def joined(self) -> tuple[Span, ...]:
        """Neighbours of one mix are one."""
        made: list[Span] = []
        for group in (*self._prompts, *self._answers):
            begin = made[-1].end if made else 0
            for span in group:
                start, end = begin + span.start, begin + span.end
                if made and made[-1].mix == span.mix:
                    made[-1] = replace(made[-1], end=end)
                else:
                    made.append(Span(start, end, span.mix))
        return tuple(made)


def _spans_of(plan: Plan, tokens: int) -> list[Span]:
    starts = [start for start, _ in plan.spans if start < tokens]
    return [
        Span(start, end, unqualified(mix))
        for (start, mix), end in zip(plan.spans, [*starts[1:], tokens], strict=False)
        if start < tokens
    ]
