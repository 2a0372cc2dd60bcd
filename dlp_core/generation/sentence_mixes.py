"""One mix per sentence: of the prompt when it is read, of the completion as it is written (DLP-LoRA, section 3).

    prompt       each sentence uses the routing of that sentence alone; the words of a chat template belong to the
                 sentence before them
    completion   starts with the routing of the request (dlp_core/text/chat.py) and is routed again at the first
                 token of each further sentence, by the request followed by the text written so far

A bare prompt's completion continues the prompt's last sentence, with its mix. A sentence that would need more adapters
than the engine can hold for one request keeps the previous mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dlp_core.engine.request import Plan
from dlp_core.mix import Mix
from dlp_core.router import Routing
from dlp_core.text.sentences import SentenceStarts, split

if TYPE_CHECKING:
    from dlp_core.text.codec import Prompt, TextStream

Route = Callable[[Sequence[Sequence[str]]], list[Routing]]
"""A router's `route_first`."""


class SentenceMixes:
    """Plans requests. `choose` turns a routing into a mix; `max_adapters` limits the adapters per request."""

    def __init__(self, route: Route, choose: Callable[[Routing], Mix], *, max_adapters: int) -> None:
        self._route = route
        self._choose = choose
        self._max_adapters = max_adapters

    def plan(self, prompt: Prompt, request: Sequence[str], completion: TextStream) -> Plan:
        """The plan of one request. `request` holds the texts that route the entire request; `completion` is a separate
        stream that the plan's follower uses to read the completion."""
        sentences = [
            (turn + start, prompt.text[turn + start : turn + end])
            for turn, turn_end in prompt.turns
            for start, end in split(prompt.text[turn:turn_end])
        ]
        routings = self._route([*([text] for _, text in sentences), request])
        mixes = [(offset, self._choose(routing)) for (offset, _), routing in zip(sentences, routings, strict=False)]
        if prompt.is_chat or not mixes:
            mixes.append((prompt.turns[-1][1] if prompt.turns else 0, self._choose(routings[-1])))
        spans: list[tuple[int, Mix]] = []
        used: set[str] = set()
        for offset, mix in mixes:
            position = prompt.token_at(offset) if spans else 0
            if spans and len(used | set(mix.names)) > self._max_adapters:
                continue
            used |= set(mix.names)
            if spans and spans[-1][0] == position:  # one token ends a sentence and starts the next
                spans.pop()
            if not spans or spans[-1][1] != mix:
                spans.append((position, mix))
        starts = SentenceStarts()
        if not prompt.is_chat:
            starts.push(prompt.text)
        texts = [text + "\n" * prompt.is_chat for text in request]
        return Plan(tuple(spans), self._follower(texts, starts, completion))

    def _follower(
        self, request: list[str], starts: SentenceStarts, completion: TextStream
    ) -> Callable[[int], Mix | None]:
        written = ""

        def follow(token: int) -> Mix | None:
            nonlocal written
            piece = completion.push([token])
            written += piece
            if not starts.push(piece):
                return None
            return self._choose(self._route([[text + written for text in request]])[0])

        return follow
