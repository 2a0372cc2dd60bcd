"""One replica of the backbone: text in, text out, under the mix each request brings.

The model runs on the engine's own thread, tokenising on another; the replica's event loop only passes
tokens on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, cast

import ray

from deployments.args import AppArgs
from deployments.generation import Delta, Finished, FinishReason, GenerationRequest, Span
from deployments.metrics import EngineMetrics
from deployments.once import Once
from dlp_core.bank import BankManifest, load_manifest
from dlp_core.bank_source import BankSource, qualified
from dlp_core.disk_cache import DiskCache
from dlp_core.errors import BankError
from dlp_core.store import open_store

if TYPE_CHECKING:
    from dlp_core.engine import TokenEvent

BANKS_KEPT = 4
"""Bank versions whose manifest stays in memory."""

REPORT_S = 2.0
"""How often gauges are set. Ray forgets a gauge that is not set again between two of its exports."""


class FusedBackbone:
    def __init__(self, args: AppArgs) -> None:
        from deployments.load_engine import load_engine

        self._args = args
        self._metrics = EngineMetrics()
        self._store = open_store(args.bank)
        self._source = BankSource(self._store, DiskCache(args.cache.path, args.cache.max_bytes))
        self._manifests = Once(self._read_manifest, keep=BANKS_KEPT)
        # A GPU is used where serve_config.yaml gives this deployment one, and only there.
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self._engine, self._codec = load_engine(args, self._source, device=device, on_load=self._metrics.loaded)
        # one thread: a tokenizer is not made for several, and one keeps a flood of long prompts off the cores
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._engine.start()
        self._reporting = asyncio.create_task(self._report())

    async def prepare(self, bank: str) -> None:
        """Makes the adapters of a bank version known. Raises StoreUnavailable or BankError."""
        await self._manifests.get(bank)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Finished, None]:
        """The pieces of one completion. Closing the generator aborts it in the engine."""
        from dlp_core.engine import Sampling

        stopwatch = self._metrics.stopwatch()
        mix = qualified(request.mix, await self._manifests.get(request.bank))
        prompt_ids = await asyncio.get_running_loop().run_in_executor(self._tokenising, self._encode, request)
        default = self._args.limits.default_max_tokens
        sampling = Sampling(
            max_tokens=self._codec.room(len(prompt_ids), request.max_tokens, default=default),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
        )
        text = self._codec.stream(prompt_ids, request.stop)
        reason: FinishReason = "stop"
        submitted = self._engine.submit(prompt_ids, mix, sampling, request_id=request.request_id)
        async with aclosing(cast("AsyncGenerator[TokenEvent, None]", submitted)) as events:
            async for event in events:
                stopwatch.tokens(len(event.token_ids))
                if delta := text.push(event.token_ids):
                    yield Delta(delta)
                if text.stopped:
                    break
                if event.finish_reason is not None:
                    reason = event.finish_reason
        if rest := text.finish():
            yield Delta(rest)
        total = len(prompt_ids) + text.tokens
        finished = Finished(reason, len(prompt_ids), text.tokens, (Span(0, total, request.mix),))
        self._metrics.finished(finished)
        yield finished

    def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        self._engine.check_health()
        if self._reporting.done():
            self._reporting.result()

    async def _report(self) -> None:
        while True:
            self._metrics.state(self._engine.stats())
            await asyncio.sleep(REPORT_S)

    def _encode(self, request: GenerationRequest) -> list[int]:
        if isinstance(request.source, str):
            return self._codec.encode(request.source)
        return self._codec.encode_chat(request.source)

    def _read_manifest(self, version: str) -> BankManifest:
        manifest = load_manifest(self._store, version)
        base = Path(self._args.base_model).name
        if manifest.base_model.id.rpartition("/")[2] != base:
            raise BankError(f"bank {version} is for base model {manifest.base_model.id!r}; this replica runs {base!r}")
        self._source.add(manifest)
        return manifest
