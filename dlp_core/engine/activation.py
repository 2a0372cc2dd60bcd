"""Activated adapters in a plan: each runs from its own invocation on (dlp_core.adapter.invocation), ordinary ones all
along, every one with the weight that it has in the mix.

    mix {x: 0.5, y: 0.3, z: 0.2}; x is ordinary, y is invoked at token 40, z at token 90

    tokens   0 to 39    x 0.5
    tokens  40 to 89    x 0.5, y 0.3
    tokens  90 on       x 0.5, y 0.3, z 0.2

Both engines rewrite a plan by this before they run it, so the spans of a reply say what ran. Neighbouring spans of
one mix become one. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from dlp_core.adapter.invocation import Invocation, begins_at
from dlp_core.engine.request import Plan
from dlp_core.mix import EMPTY_MIX, Mix


def activated(plan: Plan, prompt_ids: Sequence[int], invocation: Callable[[str], Invocation | None]) -> Plan:
    """The plan with each activated adapter from its invocation in the prompt on. `invocation(name)` is that of an
    adapter, None for an ordinary one; what it raises is raised here, or where the completion comes to the adapter."""
    begins: dict[str, int] = {}

    def begin(name: str) -> int:
        if name not in begins:
            sought = invocation(name)
            begins[name] = 0 if sought is None else begins_at(prompt_ids, sought)
        return begins[name]

    def running(mix: Mix, position: int) -> Mix:
        parts = tuple(part for part in mix.adapters if begin(part.name) <= position)
        return replace(mix, adapters=parts) if parts else EMPTY_MIX

    end = len(prompt_ids)
    spans: list[tuple[int, Mix]] = []
    for (start, mix), until in zip(plan.spans, [*(start for start, _ in plan.spans[1:]), end], strict=True):
        for position in sorted({start, *(place for name in mix.names if start < (place := begin(name)) < until)}):
            active = running(mix, position)
            if not spans or spans[-1][1] != active:
                spans.append((position, active))
    follow = plan.follow
    if follow is None:
        return replace(plan, spans=tuple(spans))

    def followed(token: int) -> Mix | None:
        mix = follow(token)
        return None if mix is None else running(mix, end)

    return replace(plan, spans=tuple(spans), follow=followed)


def plain_before(plan: Plan, position: int) -> Plan:
    """The plan with the plain backbone for the tokens before `position`, which is at most the prompt's length."""
    if position <= 0:
        return plan
    before = [mix for start, mix in plan.spans if start <= position]
    spans = [(0, EMPTY_MIX), (position, before[-1]), *((start, mix) for start, mix in plan.spans if start > position)]
    kept = [spans[0], *(span for last, span in pairwise(spans) if span[1] != last[1])]
    return replace(plan, spans=tuple(kept))
