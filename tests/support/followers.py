"""Followers for plans: mixes that change at chosen tokens of the completion."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from dlp_core.engine.request import Plan
from dlp_core.mix import Mix, Span


def every(tokens: int, *mixes: Mix) -> Callable[[], Callable[[int], Mix | None]]:
    """Makes followers that cycle through the mixes, changing after every `tokens` completion tokens."""

    def follower() -> Callable[[int], Mix | None]:
        seen = -1

        def follow(token: int) -> Mix | None:
            nonlocal seen
            seen += 1
            return mixes[seen // tokens % len(mixes)] if seen % tokens == 0 else None

        return follow

    return follower


def changing(at: int, mix: Mix) -> Callable[[int], Mix | None]:
    """Changes to `mix` at the completion's token number `at`, counted from 1."""
    seen = 0

    def follow(token: int) -> Mix | None:
        nonlocal seen
        seen += 1
        return mix if seen == at else None

    return follow


def followed(plan: Plan, prompt_tokens: int, tokens: int) -> tuple[Span, ...]:
    """The spans of a request with this plan that writes so many `tokens`, its limit: neighbours of one mix are one.
    Uses the plan's follower up."""
    spans = [plan.spans[0], *(span for last, span in pairwise(plan.spans) if span[1] != last[1])]
    for position in range(prompt_tokens, prompt_tokens + tokens - 1):
        mix = plan.follow(0) if plan.follow is not None else None
        if mix is not None and mix != spans[-1][1]:
            spans = [*(span for span in spans if span[0] < position), (position, mix)]
    ends = [*(start for start, _ in spans[1:]), prompt_tokens + tokens]
    return tuple(Span(start, end, mix) for (start, mix), end in zip(spans, ends, strict=True))
