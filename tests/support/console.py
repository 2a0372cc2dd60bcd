"""A server for the console's tests, without Ray and without a model: the real HTTP API over a real bank in a real
store, routed by its real router. Answers are the prompt's words; with a mix for each sentence, the plain backbone
writes what follows the first one.

What Ray would export as metrics is counted here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from deployments.args import FeedbackArgs, RoutingArgs
from deployments.http.access import Access
from deployments.http.admin import CanaryBank, PublishBank, Published
from deployments.http.app import create_app
from deployments.http.keeping import Keeper
from dlp_core.bank.canary import promote, start_canary, stop_canary
from dlp_core.bank.difference import BankDiff, diff
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.feedback import KeptRequest
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish, rollback
from dlp_core.bank.reading import BankVersion, current, list_versions, load_manifest
from dlp_core.bank.retention import pin, unpin
from dlp_core.bank.rollout import Picked, read_report
from dlp_core.bank.source import read_router
from dlp_core.decision import Decision, RoutingOptions, decide
from dlp_core.eval.history import judged_in
from dlp_core.generation.messages import Delta, Finished, GenerationRequest, Logprob, Piece, TokenText
from dlp_core.mix import EMPTY_MIX, Span
from dlp_core.router import Passage, Router, Routing, restricted
from dlp_core.router.explanation import Explanation, explain_first
from dlp_core.router.passages import passages_first
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

    def pick(self, *, version: str | None, user: str | None, key: str | None, request: str) -> Picked:
        return Picked(self.bank() if version is None else load_manifest(self._store, version), "serving")

    async def decide(self, picked: Picked, options: RoutingOptions, texts: Sequence[str]) -> Decision:
        bank = picked.bank

        async def route(texts: Sequence[str]) -> Routing:
            return self._router(bank, options).route_first([texts])[0]

        return await decide(bank, options, texts, route)

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        return explain_first(self._router(self.bank(), decision.options), texts)

    async def divide(self, decision: Decision, texts: Sequence[str]) -> list[Passage]:
        return passages_first(self._router(self.bank(), decision.options), texts)

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

    async def metrics(self) -> bytes:
        lines = [f'dlp_adapter_hits_total{{adapter="{name}"}} {n}' for name, n in self.hits.items() if name]
        lines += [f"dlp_mix_size_count {self.hits.total()}"]
        lines += [f'dlp_adapter_in_slot{{adapter="{name}",replica="one"}} 1' for name in self.hits if name]
        return "".join(f"{line}\n" for line in lines).encode()

    async def publish(self, body: PublishBank) -> Published:
        publishing = partial(publish, self._store, Path(body.folder), version=body.version, stage=body.stage)
        return Published(await asyncio.to_thread(publishing), ())

    async def set_canary(self, body: CanaryBank) -> None:
        if body.version is None:
            await asyncio.to_thread(stop_canary, self._store)
        else:
            await asyncio.to_thread(partial(start_canary, self._store, body.version, share=body.share))

    async def promote(self) -> None:
        await asyncio.to_thread(promote, self._store)

    def rollout(self) -> dict[str, Any]:
        return read_report(self._store, current(self._store)[0])

    async def rollback(self, version: str | None) -> BankManifest:
        return await asyncio.to_thread(rollback, self._store, version)

    async def pin(self, version: str, *, pinned: bool) -> None:
        await asyncio.to_thread(pin if pinned else unpin, self._store, version)

    async def versions(self) -> Sequence[BankVersion]:
        return await asyncio.to_thread(list_versions, self._store)

    async def diff(self, a: str, b: str) -> BankDiff:
        return diff(load_manifest(self._store, a), load_manifest(self._store, b))

    async def evaluations(self) -> dict[str, list[dict[str, Any]]]:
        return judged_in(self._store)


def server(bank: str, cache: Path, *, kept: Sequence[KeptRequest] = ()) -> FastAPI:
    """The API over the bank published at `bank`, which has kept these requests."""
    store = open_store(bank)
    keeper = Keeper(store, FeedbackArgs(delay_s=0.05), prompts=True, replica="one")
    for request in kept:
        keeper.keep(request)
    return create_app(BankService(store, cache), routing=RoutingArgs(), limits=LIMITS, access=Access(), keeper=keeper)
