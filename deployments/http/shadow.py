"""Compares what a shadow bank would do with a request with what the serving bank does, beside the request.

The mix is compared: both routers read the same texts, and they agree if they choose the same adapters. With the
shadow's `generate`, the answer is compared too, as text: the first choice, where it is greedy. All of it runs in tasks
of its own, of which there are few (ROUTINGS, GENERATIONS); what comes while they are busy is skipped. Whatever goes
wrong here is counted and hurts no request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from dlp_core.bank.rollout import Picked, ShadowCounts
from dlp_core.generation.messages import Completion, GenerationRequest, Piece

if TYPE_CHECKING:
    from dlp_core.bank.manifest import Shadow
    from dlp_core.decision import Decision

log = logging.getLogger("ray.serve")

ROUTINGS = 8
"""Requests whose shadow is routed at once, in one ingress replica."""
GENERATIONS = 1
"""Shadow answers at once, in one ingress replica: each is a sequence in a backbone's batch."""

Generation = AsyncGenerator[tuple[Piece, ...], None]


class ShadowService(Protocol):
    def shadow(self) -> Shadow | None: ...

    def pick(self, *, version: str | None, user: str | None, key: str | None, request: str) -> Picked: ...

    def compared(self, version: str, counts: ShadowCounts) -> None: ...

    def generate(self, request: GenerationRequest) -> Generation: ...


class Shadowing:
    """The comparisons of one ingress replica. Use from one event loop."""

    def __init__(self, service: ShadowService, *, timeout_s: float) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._routing = 0
        self._generating = 0

    def beside(
        self,
        served: Decision,
        request: GenerationRequest,
        generation: Generation,
        decide: Callable[[Picked], Awaitable[Decision]],
    ) -> Generation:
        """The generation of `request`, under the mix of `served`, to be used in place of the one given. `decide`
        chooses a mix for the same prompt under another bank."""
        shadow = self._service.shadow()
        if shadow is None or not served.options.asks_router:
            return generation
        if self._routing >= ROUTINGS:
            self._service.compared(shadow.version, ShadowCounts(skipped=1))
            return generation
        heard: asyncio.Future[Completion] | None = None
        if shadow.generate and request.sampling.temperature == 0 and not request.tools and request.by_sentence is None:
            heard = asyncio.get_running_loop().create_future()
            generation = _overheard(generation, heard)
        self._routing += 1
        task = asyncio.create_task(self._compare(shadow.version, served, request, heard, decide))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return generation

    async def _compare(
        self,
        version: str,
        served: Decision,
        request: GenerationRequest,
        heard: asyncio.Future[Completion] | None,
        decide: Callable[[Picked], Awaitable[Decision]],
    ) -> None:
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    picked = self._service.pick(version=version, user=None, key=None, request="")
                    decision = await decide(picked)
            finally:
                self._routing -= 1
            same = sorted(decision.mix.names) == sorted(served.mix.names)
            self._service.compared(version, ShadowCounts(mixes=1, same_mixes=int(same)))
            if heard is not None:
                self._service.compared(version, await self._compare_answers(served, decision, request, heard))
        except Exception as error:
            log.debug("a comparison with shadow %s failed: %r", version, error)
            self._service.compared(version, ShadowCounts(failed=1))

    async def _compare_answers(
        self, served: Decision, decision: Decision, request: GenerationRequest, heard: asyncio.Future[Completion]
    ) -> ShadowCounts:
        """An answer under the same weights of the same adapters is the same: nothing is generated."""
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout(self._timeout_s):
                answer = await heard
            if _exactly(served) == _exactly(decision):
                return ShadowCounts(answers=1, same_answers=1)
            if self._generating >= GENERATIONS:
                return ShadowCounts(skipped=1)
            self._generating += 1
            try:
                async with asyncio.timeout(self._timeout_s):
                    other = await self._generated(decision, request)
            finally:
                self._generating -= 1
            return ShadowCounts(answers=1, same_answers=int(other.text == answer.text))
        return ShadowCounts()  # the served answer did not end

    async def _generated(self, decision: Decision, request: GenerationRequest) -> Completion:
        other = replace(
            request,
            request_id=f"{request.request_id}-shadow",
            bank=decision.bank,
            mix=decision.mix,
            stream=False,
            trace=None,
        )
        completion = Completion()
        async with aclosing(self._service.generate(other)) as together:
            async for pieces in together:
                for piece in pieces:
                    completion.add(piece)
        return completion


async def _overheard(generation: Generation, heard: asyncio.Future[Completion]) -> Generation:
    """The same pieces; `heard` gets the completion when it has ended, or is cancelled."""
    completion = Completion()
    try:
        async with aclosing(generation):
            async for pieces in generation:
                for piece in pieces:
                    completion.add(piece)
                yield pieces
        if completion.finished is not None and not heard.done():
            heard.set_result(completion)
    finally:
        heard.cancel()


def _exactly(decision: Decision) -> list[tuple[str, float]]:
    """The mix by the digests of its adapters."""
    return sorted((decision.digests[part.name], part.weight) for part in decision.mix.adapters)
