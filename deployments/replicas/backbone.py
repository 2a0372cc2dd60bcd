"""One replica of the backbone: text in, text out, under the mix each request brings."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import ray
from ray import serve

from deployments.args import AppArgs
from deployments.fleet.affinity import RESIDENT
from deployments.fleet.autoscaling import ADAPTERS, REQUESTS, TOKENS
from deployments.http.admin import LoadAdapter, PublishBank, Published
from deployments.links.parts import Listening, Part
from deployments.links.sending import Sender
from deployments.observe import tracing
from deployments.observe.metrics import EngineMetrics
from deployments.replicas.banks import LoadedBanks
from deployments.replicas.process import join_library_log, lasting_imports
from dlp_core.adapter.examination import Check, Verdict
from dlp_core.adapter.names import unqualify
from dlp_core.bank.manifest import AdapterEntry, BankManifest, Blob
from dlp_core.bank.publish import publish
from dlp_core.bank.revision import with_adapter
from dlp_core.bank.served_base import ServedBase, check_served
from dlp_core.bank.source import BankSource, qualified, qualified_names, successors
from dlp_core.errors import EngineFailed
from dlp_core.generation.messages import Finished, GenerationRequest, Piece
from dlp_core.generation.planning import planner
from dlp_core.store.local_copy import local_copy
from dlp_core.store.opening import open_store

log = logging.getLogger("ray.serve")

WATCH_S = 2.0
"""How often the gauges are set, which Ray otherwise drops, and the engine's health is checked."""


class FusedBackbone:
    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc] # Serve awaits it
        with lasting_imports():
            from dlp_core.generation.engines import load_engine
            from dlp_core.generation.generator import Generator

        tracing.start()
        join_library_log()
        self._args = args
        self._metrics = EngineMetrics()
        self._store = open_store(args.bank)
        self._served = ServedBase.at(Path(args.base_model))
        cache = args.cache.open(on_fetch=self._fetched)
        self._source = BankSource(self._store, cache)
        self._banks = LoadedBanks(self._store, cache, admit=self._admit)
        with lasting_imports():
            self._engine, self._codec, calls = load_engine(
                Path(args.base_model),
                self._source,
                args.engine,
                dtype=args.dtype,
                # A GPU is used where serve_config.yaml gives this deployment one, and only there.
                device="cuda" if ray.get_gpu_ids() else "cpu",
                threads=args.threads,
                on_load=self._loaded,
            )
        self._generator = Generator(
            self._engine, self._codec, calls=calls, default_max_tokens=args.limits.default_max_tokens
        )
        self._max_adapters = args.engine.slots - len(args.pinned_adapters)
        self._sender = Sender(serve.get_replica_context().replica_tag, args.stream_interval_ms / 1000)
        self._places = asyncio.Semaphore(args.engine.max_requests)
        await self._engine.start()
        self._watching = asyncio.create_task(self._watch())

    async def prepare(self, bank: str) -> None:
        """Register the adapters of a bank version and load those that are pinned or resident under another version.
        Raises StoreUnavailable, BankError, AdapterRefused or AdapterUnavailable."""
        manifest = await self._banks.manifest(bank)
        await self._engine.keep(qualified_names(self._args.pinned_adapters, manifest))
        for name in successors(self._engine.stats().resident, manifest):
            await self._engine.preload([name])

    async def load_adapter(self, body: LoadAdapter) -> Published:
        """Publish the bank with one more adapter, checked against this replica's base model."""
        said: dict[str, Verdict] = {}

        def work() -> BankManifest:
            with local_copy(body.lora_path) as folder:
                return with_adapter(
                    self._store,
                    body.lora_name,
                    folder,
                    examples=body.examples,
                    description=body.description,
                    replace=body.load_inplace,
                    check=self._check(),
                    report=lambda verdict: said.update({verdict.name: verdict}),
                )

        return _published(await asyncio.to_thread(work), said)

    async def publish(self, body: PublishBank) -> Published:
        """Publish a bank folder, checked against this replica's base model."""
        said: dict[str, Verdict] = {}

        def work() -> BankManifest:
            with local_copy(body.folder) as source:
                return publish(
                    self._store,
                    source,
                    version=body.version,
                    served=self._served,
                    stage=body.stage,
                    check=self._check(),
                    report=lambda verdict: said.update({verdict.name: verdict}),
                )

        return _published(await asyncio.to_thread(work), said)

    def _check(self) -> Check:
        from dlp_core.fusion.layers import fits_model

        return fits_model(Path(self._args.base_model))

    async def generate(self, request: GenerationRequest, ingress: str) -> AsyncGenerator[Part, None]:
        """One completion for an ingress replica: the parts of it that `listen` does not send. Closing the generator
        aborts the request in the engine."""
        stopwatch = self._metrics.stopwatch()
        try:
            async with self._places:  # Serve lets in a few more: one for each link that there may be
                with (
                    tracing.opened("generate", request.trace) as span,
                    self._sender.answer(request.request_id, ingress, stream=request.stream) as answer,
                ):
                    generated = await self._generated(request, stopwatch.tokens)
                    async with aclosing(tracing.generation(span, request, generated)) as pieces:
                        async for piece in pieces:
                            if isinstance(piece, Finished):
                                self._metrics.finished(piece)
                            if part := answer.add(piece):
                                yield part
        except EngineFailed:
            self._exit_if_failed()
            raise

    async def _generated(
        self, request: GenerationRequest, on_tokens: Callable[[int], object]
    ) -> AsyncGenerator[Piece, None]:
        manifest = await self._banks.manifest(request.bank)
        router = None if request.by_sentence is None else await self._banks.router(request.bank)
        return self._generator.generate(
            request.source,
            planner(request, manifest, router, self._codec, max_adapters=self._max_adapters),
            request.sampling,
            request_id=request.request_id,
            stop=request.stop,
            echo=request.echo,
            prompt_only=request.prompt_only,
            add_special_tokens=request.add_special_tokens,
            chat_template=await self._chat_template(request, manifest),
            tools=request.tools,
            stream=request.stream,
            on_tokens=on_tokens,
        )

    async def listen(self, listening: Listening) -> AsyncGenerator[tuple[Part, ...], None]:
        """What the completions for an ingress replica send together. Ends with the last of them."""
        async with aclosing(self._sender.listen(listening)) as messages:
            async for parts in messages:
                yield parts

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of a prompt that comes as token ids: the ingress, which routes it, has no tokenizer."""
        return await self._generator.decode(ids)

    async def _chat_template(self, request: GenerationRequest, manifest: BankManifest) -> str | None:
        """That of the adapter which serves a conversation alone, if it brings one; None for the base model's."""
        if not isinstance(request.source, tuple) or request.by_sentence is not None or len(request.mix.names) != 1:
            return None
        [name] = qualified(request.mix, manifest).names
        return await asyncio.to_thread(self._source.chat_template, name)

    def check_health(self) -> None:
        """Raise if the engine or the watch loop has failed: Ray then replaces the replica."""
        self._engine.check_health()
        if self._watching.done():
            self._watching.result()

    def record_routing_stats(self) -> dict[str, list[str]]:
        """The resident adapters, for the request router (deployments/fleet/affinity.py). Changes go to every handle."""
        return {RESIDENT: sorted({unqualify(name) for name in self._engine.stats().resident})}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load, for the policies in deployments/fleet/autoscaling.py."""
        stats = self._engine.stats()
        return {
            REQUESTS: stats.running + stats.waiting,
            TOKENS: 1 - stats.cache_free + stats.tokens_waiting / stats.cache_tokens,
            ADAPTERS: stats.adapter_demand,
        }

    def _fetched(self, entry: Blob, seconds: float) -> None:
        if isinstance(entry, AdapterEntry):
            self._loaded(entry.qualified_name, "disk", seconds)

    def _loaded(self, adapter: str, tier: str, seconds: float) -> None:
        self._metrics.loaded(adapter, tier, seconds)
        tracing.adapter_loaded(adapter, tier, seconds, self._source.size(adapter))

    async def _watch(self) -> None:
        while True:
            self._exit_if_failed()
            self._metrics.state(self._engine.stats(), on_disk=await asyncio.to_thread(self._source.on_disk))
            await asyncio.sleep(WATCH_S)

    def _exit_if_failed(self) -> None:
        """Exit if the engine has failed, since it never recovers. Waiting for Ray to see three bad health checks would
        fail every request until then; now those without a token run elsewhere, and a new replica starts."""
        try:
            self._engine.check_health()
        except EngineFailed as error:
            log.critical("this replica exits: %s", error.message)
            logging.shutdown()
            os._exit(1)

    def _admit(self, manifest: BankManifest) -> None:
        """Makes the adapters of a bank known. Raises BankError if they are of another base model."""
        if remark := check_served(manifest.base_model, self._served):
            log.warning("bank %s: %s", manifest.version, remark)
        self._source.add(manifest)


def _published(bank: BankManifest, said: Mapping[str, Verdict]) -> Published:
    warnings = tuple(f"adapter {name!r}: {warning}" for name, verdict in said.items() for warning in verdict.warnings)
    for warning in warnings:
        log.warning("bank %s: %s", bank.version, warning)
    return Published(bank, warnings)
