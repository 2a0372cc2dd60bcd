"""The engine over transformers: admits requests, pins their adapters, streams their tokens.

`FusedEngine` belongs to one event loop; the model runs on the batch's own thread (batching.py). What its methods
promise is in protocol.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dlp_core.engine.activation import activated
from dlp_core.engine.admission import check_places, token_limit
from dlp_core.engine.batching import Batching
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.request import Plan, Sampling, TokenEvent
from dlp_core.engine.running import NeedsAdapters, Output
from dlp_core.engine.stats import EngineStats
from dlp_core.errors import EngineFailed, InvalidRequest, RequestAborted
from dlp_core.fusion.layers import Fusion
from dlp_core.mix import Mix
from dlp_core.residency.movement import Pin, Residency

if TYPE_CHECKING:
    from dlp_core.engine.grammar import Grammars, Guide


class FusedEngine:
    """A model with fusion installed, the residency of its adapters, and the batch that runs on it."""

    def __init__(
        self, model: Any, fusion: Fusion, residency: Residency, config: EngineConfig, *, tokenizer: Any = None
    ) -> None:
        """`model` is a transformers causal language model in which `fusion` is installed. Without its tokenizer, the
        engine cannot follow a schema."""
        self._config = config
        self._residency = residency
        text_config = model.config.get_text_config()
        self.vocabulary = int(text_config.vocab_size)
        self.context = min(int(text_config.max_position_embeddings), config.cache_tokens)
        self._eos = _eos_tokens(model)
        self._grammars = None if tokenizer is None else self._new_grammars(tokenizer)
        self._batching = Batching(model, fusion, config, eos=self._eos, can_hold=residency.can_hold)
        self._streams: dict[str, asyncio.Queue[Output | NeedsAdapters | RequestAborted]] = {}
        self._token_limits: dict[str, int] = {}  # prompt and completion, of requests that are not finished
        self._running = 0

    def _new_grammars(self, tokenizer: Any) -> Grammars:
        from dlp_core.engine.grammar import Grammars

        return Grammars(tokenizer, self.vocabulary, self._eos)

    async def start(self) -> None:
        self._batching.start()
        await asyncio.to_thread(self._batching.ready.wait)
        if not self._batching.alive:
            cause = self._batching.background_thread_status.fatal_error
            raise EngineFailed(f"the engine did not start: {cause}") from cause

    async def stop(self) -> None:
        await asyncio.to_thread(self._batching.stop, block=True, hard_stop=True)
        self._residency.close()

    async def submit(
        self,
        prompt_ids: Sequence[int],
        mix: Mix | Plan,
        sampling: Sampling,
        *,
        request_id: str,
        prompt_logprobs: int | None = None,
    ) -> AsyncGenerator[TokenEvent, None]:
        plan = mix if isinstance(mix, Plan) else Plan.of(mix)
        guide = None if sampling.response_format is None else await self._guide(sampling.response_format)
        max_tokens = self._admit(prompt_ids, plan, sampling, request_id)
        plan = activated(plan, prompt_ids, self._residency.invocation)
        sampling = replace(sampling, max_tokens=max_tokens)
        results: asyncio.Queue[Output | NeedsAdapters | RequestAborted] = asyncio.Queue()
        self._streams[request_id] = results
        self._token_limits[request_id] = len(prompt_ids) + max_tokens
        last_event = None

        def deliver(item: Output | NeedsAdapters) -> None:
            if isinstance(item, Output) and item.finished:
                self._token_limits.pop(request_id, None)  # it only waits to be read
            results.put_nowait(item)

        try:
            async with AsyncExitStack() as pin_stack:
                pins: Mapping[str, Pin] = await pin_stack.enter_async_context(self._residency.pinned(plan.names))
                self._running += 1
                try:
                    self._batching.add(
                        request_id,
                        list(prompt_ids),
                        sampling,
                        plan=plan,
                        pins=pins,
                        guide=guide,
                        prompt_logprobs=prompt_logprobs,
                        deliver=deliver,
                    )
                    async for event in self._events(request_id, results, pin_stack, len(prompt_ids), sampling):
                        if event.finish_reason is not None:
                            last_event = event
                            break
                        yield event
                finally:
                    self._running -= 1
                    if last_event is None:
                        await self._cancel(request_id)
                    else:
                        self._batching.forget(request_id)
        finally:
            del self._streams[request_id]
            self._token_limits.pop(request_id, None)
        assert last_event is not None
        yield last_event  # after everything is released, because the consumer may take its time

    async def keep(self, names: Sequence[str]) -> None:
        await self._residency.keep(names)

    async def preload(self, names: Sequence[str]) -> None:
        await self._residency.preload(names)

    def abort(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(RequestAborted(f"request {request_id} was aborted"))

    def stats(self) -> EngineStats:
        cached = self._batching.cached_tokens()
        return EngineStats(
            running=self._running,
            waiting=len(self._streams) - self._running,
            resident=tuple(self._residency.resident),
            host_adapters=self._residency.host_count,
            pinned=self._residency.pinned_count,
            cache_tokens=self._config.cache_tokens,
            cache_free=self._batching.cache_free(),
            shared_tokens=self._batching.shared_tokens,
            tokens_running=sum(cached.values()),
            tokens_waiting=sum(limit for request_id, limit in self._token_limits.items() if request_id not in cached),
            adapter_demand=self._residency.demand,
            adapter_wait_s=self._residency.max_wait_s,
            cuda_graphs=self._batching.cuda_graphs,
        )

    def check_health(self) -> None:
        if not self._batching.alive:
            raise EngineFailed("the generation thread has ended; replace this replica")
        stalled_s = time.monotonic() - self._batching.last_step
        if self._running and stalled_s > self._config.stall_seconds:
            raise EngineFailed(
                f"no step finished for {stalled_s:.0f} s with {self._running} requests running "
                f"(limit {self._config.stall_seconds:.0f} s); replace this replica"
            )

    async def _guide(self, schema: str) -> Guide:
        if self._grammars is None:
            raise InvalidRequest("this engine has no tokenizer, so it cannot follow a schema", param="response_format")
        return await asyncio.to_thread(self._grammars.guide, schema)

    def _admit(self, prompt_ids: Sequence[int], plan: Plan, sampling: Sampling, request_id: str) -> int:
        """Return how many tokens the completion may have; raises if the request cannot be admitted."""
        if request_id in self._streams:
            raise InvalidRequest(f"request id {request_id!r} is in use")
        max_tokens = token_limit(prompt_ids, plan, sampling, vocabulary=self.vocabulary, context=self.context)
        check_places(len(self._streams), self._config.max_requests)
        if not self._batching.alive:
            raise EngineFailed("the generation thread has ended; this replica is being replaced, try again")
        return max_tokens

    async def _events(
        self,
        request_id: str,
        results: asyncio.Queue[Output | NeedsAdapters | RequestAborted],
        pin_stack: AsyncExitStack,
        prompt_tokens: int,
        sampling: Sampling,
    ) -> AsyncIterator[TokenEvent]:
        sent = 0
        pending: TokenEvent | None = None
        while True:
            output = await results.get()
            if isinstance(output, NeedsAdapters):
                if pending is not None:
                    yield pending
                    sent, pending = sent + len(pending.token_ids), None
                await pin_stack.aclose()
                pins = await pin_stack.enter_async_context(self._residency.pinned(output.names))
                self._batching.resume(request_id, pins)
                continue
            if isinstance(output, RequestAborted):
                raise output
            if output.error is not None:
                raise output.error
            tokens = output.token_ids
            stopped = output.finished and not sampling.ignore_eos and bool(tokens) and tokens[-1] in self._eos
            count = len(tokens) - stopped
            spans = self._batching.spans(request_id, prompt_tokens + count)
            event = TokenEvent(
                tokens[sent:count],
                output.logprobs[sent:count],
                prompt_logprobs=() if sent else output.prompt_logprobs,
                spans=spans,
                cached_tokens=self._batching.found_in_cache(request_id),
            )
            if output.finished:
                yield replace(event, finish_reason="stop" if stopped else "length")
                return
            if count > sent:
                pending = event
                if results.empty():  # otherwise a newer output includes it
                    yield pending
                    sent, pending = count, None

    async def _cancel(self, request_id: str) -> None:
        """Return once the generation thread no longer touches the request. Cannot be interrupted: until then its slots
        must stay pinned."""
        loop = asyncio.get_running_loop()
        forgotten = asyncio.Event()
        self._batching.cancel(request_id, lambda: loop.call_soon_threadsafe(forgotten.set))
        waiting = asyncio.ensure_future(forgotten.wait())
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await waiting
            raise


def _eos_tokens(model: Any) -> frozenset[int]:
    for config in (model.generation_config, model.config.get_text_config()):
        eos = getattr(config, "eos_token_id", None)
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
    return frozenset()
