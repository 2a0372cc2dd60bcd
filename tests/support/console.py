"""A server for the console's tests, without Ray and without a model: the real HTTP API over a real bank in a real
store, routed by its real router. Answers are the prompt's words; with a mix for each sentence, the plain backbone
writes what follows the first one.

What the API does not have of its own in one process is played: the metrics, and the requests that were kept.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from deployments.args import RoutingArgs
from deployments.http.access import Access
from deployments.http.admin import Published
from deployments.http.app import create_app
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import BankDiff, BankManifest, diff
from dlp_core.bank.publish import publish, rollback
from dlp_core.bank.reading import BankVersion, list_versions, load_manifest
from dlp_core.bank.retention import pin, unpin
from dlp_core.bank.source import read_router
from dlp_core.decision import Decision, RoutingOptions, decide
from dlp_core.generation.messages import Delta, Finished, GenerationRequest, Logprob, Piece, TokenText
from dlp_core.mix import EMPTY_MIX, Span
from dlp_core.router import Router, Routing, restricted
from dlp_core.router.explanation import Explanation, explain_first
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.echo import LIMITS, EchoService

PROMPT_TOKENS = 7


class BankService(EchoService):
    """Routes by a bank's router and answers with the prompt's words, a token each."""

    def __init__(self, store: AdapterStore, cache: Path) -> None:
        super().__init__()
        self._store = store
        self._cache = DiskCache(cache, 2**30)
        self._banks: dict[str, BankManifest] = {}
        self._routers: dict[str, Router] = {}
        self.hits: Counter[str] = Counter()

    def bank(self) -> BankManifest:
        return load_manifest(self._store)

    def _router(self, bank: BankManifest, options: RoutingOptions) -> Router:
        if bank.version not in self._routers:
            self._routers[bank.version] = read_router(self._store, self._cache, bank)
        return restricted(self._routers[bank.version], options.allowed)

    async def decide(self, options: RoutingOptions, texts: Sequence[str]) -> Decision:
        bank = self.bank()

        async def route(texts: Sequence[str]) -> Routing:
            return self._router(bank, options).route_first([texts])[0]

        return await decide(bank, options, texts, route)

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        return explain_first(self._router(self.bank(), decision.options), texts)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[Piece, ...], None]:
        self.hits.update(request.mix.names or ("",))
        text = request.source if isinstance(request.source, str) else request.source[-1].content  # type: ignore[union-attr]
        words = text.split()[: request.sampling.max_tokens or 64]
        second = next((n for n, word in enumerate(words, 1) if word.endswith((".", "?"))), len(words))
        spans: tuple[Span, ...] = (Span(0, PROMPT_TOKENS + len(words), request.mix),)
        if request.by_sentence is not None and second < len(words):
            spans = (
                Span(0, PROMPT_TOKENS + second, request.mix),
                Span(PROMPT_TOKENS + second, PROMPT_TOKENS + len(words), EMPTY_MIX),
            )
        for index, word in enumerate(words):
            await asyncio.sleep(0.01)
            token = TokenText(f"{word} ", f"{word} ".encode(), -0.25)
            logprobs = () if request.sampling.logprobs is None else (Logprob(token, (token,), index),)
            yield (Delta(f"{word} ", logprobs, (), spans if len(spans) > 1 and index == second else ()),)
        yield (Finished("stop", PROMPT_TOKENS, len(words), spans),)

    async def publish(self, folder: str, version: str | None) -> Published:
        return Published(await asyncio.to_thread(publish, self._store, Path(folder), version=version), ())

    async def rollback(self, version: str | None) -> BankManifest:
        return await asyncio.to_thread(rollback, self._store, version)

    async def pin(self, version: str, *, pinned: bool) -> None:
        await asyncio.to_thread(pin if pinned else unpin, self._store, version)

    async def versions(self) -> Sequence[BankVersion]:
        return await asyncio.to_thread(list_versions, self._store)

    async def diff(self, a: str, b: str) -> BankDiff:
        return diff(load_manifest(self._store, a), load_manifest(self._store, b))


def server(bank: str, cache: Path, *, kept: Sequence[dict[str, Any]] = ()) -> tuple[FastAPI, list[dict[str, Any]]]:
    """The API over the bank published at `bank`, and the feedback it has been given. `kept` are its kept requests."""
    service = BankService(open_store(bank), cache)
    app = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access())
    feedback: list[dict[str, Any]] = []
    numbers = itertools.count()

    async def requests(reviewed: bool = True, limit: int = 100, order: str = "time") -> JSONResponse:
        given = {one.get("request_id") for one in feedback}
        found = [{**one, "feedback": []} for one in kept if reviewed or one["id"] not in given]
        found.sort(key=lambda one: one["confidence"])
        return JSONResponse({"object": "list", "data": found[:limit], "has_more": False})

    async def give(request: Request) -> JSONResponse:
        feedback.append(await request.json())
        return JSONResponse({"id": f"fb-{next(numbers)}", "object": "feedback"})

    async def metrics() -> PlainTextResponse:
        lines = [f'dlp_adapter_hits_total{{adapter="{name}"}} {n}' for name, n in service.hits.items() if name]
        lines += [f"dlp_mix_size_count {service.hits.total()}"]
        lines += [f'dlp_adapter_in_slot{{adapter="{name}",replica="one"}} 1' for name in service.hits if name]
        return PlainTextResponse("".join(f"{line}\n" for line in lines))

    app.get("/v1/requests")(requests)
    app.post("/v1/feedback")(give)
    app.get("/metrics")(metrics)
    return app, feedback
