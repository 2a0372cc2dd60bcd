"""How many requests a backbone replica runs at once, and that each leaves its place however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.links.parts import Part
from deployments.links.sending import Sender
from deployments.replicas.backbone import FusedBackbone
from dlp_core.engine.request import Sampling
from dlp_core.errors import NotFinite
from dlp_core.generation.messages import Delta, Finished, GenerationRequest, Piece
from dlp_core.mix import EMPTY_MIX
from tests.support.waiting import async_wait_for

PLACES = 2
END = Finished("stop", 1, 1, ())


class Replica(FusedBackbone):
    """A backbone whose generations say something when they are told to."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Queue[Piece | Exception]] = {}
        self._places = asyncio.Semaphore(PLACES)
        self._sender = Sender("replica", 0.0)
        self._metrics: Any = SimpleNamespace(
            stopwatch=lambda: SimpleNamespace(tokens=None), finished=lambda finished: None
        )

    async def _generated(self, request: GenerationRequest, on_tokens: Any) -> AsyncGenerator[Piece, None]:
        return self._said(request.request_id)

    async def _said(self, request_id: str) -> AsyncGenerator[Piece, None]:
        said = self.running[request_id] = asyncio.Queue()
        try:
            while not isinstance(piece := await said.get(), Finished):
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            yield piece
        finally:
            del self.running[request_id]

    def ask(self, request_id: str) -> asyncio.Task[list[Part]]:
        async def collect() -> list[Part]:
            request = GenerationRequest(request_id, "bank", EMPTY_MIX, "hello", Sampling())
            return [part async for part in self.generate(request, "ingress")]

        return asyncio.create_task(collect())


@pytest.mark.parametrize("how", ["finishes", "fails", "is cancelled"])
async def test_a_request_beyond_the_engines_limit_waits_for_a_place(how: str) -> None:
    replica = Replica()
    tasks = {name: replica.ask(name) for name in ("first", "second", "third")}
    await async_wait_for(lambda: len(replica.running) == PLACES, "running requests")
    assert list(replica.running) == ["first", "second"]
    if how == "is cancelled":
        tasks["first"].cancel()
    else:
        replica.running["first"].put_nowait(END if how == "finishes" else NotFinite("not a number"))
    await async_wait_for(lambda: "third" in replica.running, "third request")
    for name in ("second", "third"):
        replica.running[name].put_nowait(Delta(name))
        replica.running[name].put_nowait(END)
    assert [part.pieces for part in await tasks["third"]] == [(Delta("third"),), (END,)]
    await tasks["second"]
    await asyncio.gather(tasks["first"], return_exceptions=True)
    assert not replica.running
