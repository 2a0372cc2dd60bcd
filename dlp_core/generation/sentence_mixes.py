"""A mix for each sentence: of the prompt when it is read, of the completion as it is written (DLP-LoRA, section 3).

    prompt       each sentence runs under what the router makes of that sentence alone; the words of a chat template go
                 with the sentence before them
    completion   begins under what the router makes of the request (dlp_core/text/chat.py), and is routed anew at
                 the first token of each further sentence, by the request followed by all that was written so far

A bare prompt's completion goes on with the prompt's last sentence, and with its mix. A sentence that would need more
adapters than the engine can hold for one request stays with the mix before it.
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
    """Plans requests. `choose` turns what the router says into a mix; `max_adapters` may serve one request."""

    def __init__(self, route: Route, choose: Callable[[Routing], Mix], *, max_adapters: int) -> None:
        self._route = route
        self._choose = choose
        self._max_adapters = max_adapters

    def plan(self, prompt: Prompt, request: Sequence[str], completion: TextStream) -> Plan:
        """The plan of one request. `request` are the texts that route it as a whole; `completion` is a stream of its
        own, which the plan's follower reads the completion with."""
        sentences = [
            (turn + start, prompt.text[turn + start : turn + end])
            for turn, until in prompt.turns
            for start, end in split(prompt.text[turn:until])
        ]
        routings = self._route([*([text] for _, text in sentences), request])
        wanted = [(offset, self._choose(routing)) for (offset, _), routing in zip(sentences, routings, strict=False)]
        if prompt.is_chat or not wanted:
            wanted.append((prompt.turns[-1][1] if prompt.turns else 0, self._choose(routings[-1])))
        spans: list[tuple[int, Mix]] = []
        used: set[str] = set()
        for offset, mix in wanted:
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
        asked = [text + "\n" * prompt.is_chat for text in request]
        return Plan(tuple(spans), self._follower(asked, starts, completion))

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
