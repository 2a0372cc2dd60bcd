"""The engine: admits requests, pins their adapters, streams their tokens.

`FusedEngine` belongs to one event loop; the model runs on the batch's own thread (batching.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from dlp_core.engine.batching import Batching, Needs, Output
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.request import Plan, Sampling, TokenEvent
from dlp_core.engine.stats import EngineStats
from dlp_core.errors import EngineFailed, EngineFull, InvalidRequest, PromptTooLong, RequestAborted
from dlp_core.fusion.layers import Fusion
from dlp_core.mix import Mix
from dlp_core.residency.movement import Pin, Residency


class FusedEngine:
    """A model with fusion installed, its adapters' residency, and the batch that runs on it."""

    def __init__(self, model: Any, fusion: Fusion, residency: Residency, config: EngineConfig) -> None:
        """`model` is a transformers causal language model on which `fusion` was installed."""
        self._config = config
        self._residency = residency
        text_config = model.config.get_text_config()
        self.vocabulary = int(text_config.vocab_size)
        self.context = min(int(text_config.max_position_embeddings), config.cache_tokens)
        """Tokens that prompt and completion may have together."""
        self._eos = _eos_tokens(model)
        self._batching = Batching(model, fusion, config, eos=self._eos, has_room=residency.has_room)
        self._streams: dict[str, asyncio.Queue[Output | Needs | RequestAborted]] = {}
        self._most_tokens: dict[str, int] = {}  # prompt and completion, of requests whose last token is not there yet
        self._running = 0

    def start(self) -> None:
        """Starts the generation thread and returns when it takes requests. Raises EngineFailed if it cannot, for
        instance because the cache does not fit into memory."""
        self._batching.start()
        self._batching.ready.wait()
        if not self._batching.alive:
            cause = self._batching.background_thread_status.fatal_error
            raise EngineFailed(f"the engine did not start: {cause}") from cause

    async def stop(self) -> None:
        """Ends the generation thread; requests in flight get EngineFailed."""
        await asyncio.to_thread(self._batching.stop, block=True, hard_stop=True)
        self._residency.close()

    async def submit(
        self, prompt_ids: Sequence[int], mix: Mix | Plan, sampling: Sampling, *, request_id: str
    ) -> AsyncGenerator[TokenEvent, None]:
        """Generates from `prompt_ids` under `mix`, or under the mixes of a plan, and yields tokens as they come; the
        last event has a finish reason.

        Closing the iterator aborts the request. However it ends, its adapters are unpinned and its cache blocks
        are free afterwards. Raises InvalidRequest, PromptTooLong, UnknownModel, AdapterRefused,
        AdapterUnavailable, EngineFull, EngineFailed, and RequestAborted after `abort`.
        """
        plan = mix if isinstance(mix, Plan) else Plan.of(mix)
        max_tokens = self._admit(prompt_ids, plan, sampling, request_id)
        sampling = replace(sampling, max_tokens=max_tokens)
        results: asyncio.Queue[Output | Needs | RequestAborted] = asyncio.Queue()
        self._streams[request_id] = results
        self._most_tokens[request_id] = len(prompt_ids) + max_tokens
        last = None

        def deliver(item: Output | Needs) -> None:
            if isinstance(item, Output) and item.finished:
                self._most_tokens.pop(request_id, None)  # it waits for nothing but its reader
            results.put_nowait(item)

        try:
            async with AsyncExitStack() as held:
                pins: Mapping[str, Pin] = await held.enter_async_context(self._residency.pinned(plan.names))
                self._running += 1
                try:
                    self._batching.add(request_id, list(prompt_ids), sampling, plan=plan, pins=pins, deliver=deliver)
                    async for event in self._events(request_id, results, held, len(prompt_ids), sampling):
                        if event.finish_reason is not None:
                            last = event
                            break
                        yield event
                finally:
                    self._running -= 1
                    if last is None:
                        await self._cancel(request_id)
                    else:
                        self._batching.forget(request_id)
        finally:
            del self._streams[request_id]
            self._most_tokens.pop(request_id, None)
        assert last is not None
        yield last  # everything is released before a consumer can dawdle over the last event

    async def keep(self, names: Sequence[str]) -> None:
        """Loads these adapters and keeps them on the device, instead of those kept before. Raises UnknownModel,
        AdapterRefused, AdapterUnavailable, or InvalidRequest if they are more than there are slots."""
        await self._residency.keep(names)

    async def preload(self, names: Sequence[str]) -> None:
        """Loads these adapters, ahead of the requests that will want them. Raises what `keep` raises."""
        await self._residency.preload(names)

    def abort(self, request_id: str) -> None:
        """Ends a request from outside: its stream raises RequestAborted. Unknown ids are ignored."""
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(RequestAborted(f"request {request_id} was aborted"))

    def stats(self) -> EngineStats:
        held = self._batching.held_tokens()
        return EngineStats(
            running=self._running,
            waiting=len(self._streams) - self._running,
            resident=tuple(self._residency.resident),
            host_adapters=self._residency.host_count,
            pinned=self._residency.pinned_count,
            cache_free=self._batching.cache_free(),
            shared_tokens=self._batching.shared_tokens,
            tokens_running=sum(held.values()),
            tokens_waiting=sum(most for request_id, most in self._most_tokens.items() if request_id not in held),
            adapter_demand=self._residency.demand,
            adapter_wait_s=self._residency.longest_wait,
        )

    def check_health(self) -> None:
        """Raises EngineFailed when the generation thread is gone, or has not finished a step for too long."""
        if not self._batching.alive:
            raise EngineFailed("the generation thread has ended; replace this replica")
        idle = time.monotonic() - self._batching.last_step
        if self._running and idle > self._config.stall_seconds:
            raise EngineFailed(
                f"no step finished for {idle:.0f} s with {self._running} requests running "
                f"(limit {self._config.stall_seconds:.0f} s); replace this replica"
            )

    def _admit(self, prompt_ids: Sequence[int], plan: Plan, sampling: Sampling, request_id: str) -> int:
        """How many tokens the completion may have. Raises why the request cannot be taken."""
        if request_id in self._streams:
            raise InvalidRequest(f"request id {request_id!r} is in use")
        if not prompt_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if not all(0 <= token < self.vocabulary for token in prompt_ids):
            raise InvalidRequest(f"the prompt has token ids outside 0..{self.vocabulary - 1}", param="prompt")
        max_tokens = sampling.max_tokens or max(1, self.context - len(prompt_ids))
        if len(prompt_ids) + max_tokens > self.context:
            raise PromptTooLong(
                f"the prompt has {len(prompt_ids)} tokens and max_tokens is {max_tokens}; "
                f"together they may be at most {self.context}",
                param="prompt",
            )
        plan.check(len(prompt_ids))
        if len(self._streams) >= self._config.max_requests:
            raise EngineFull(
                f"this replica runs or queues {len(self._streams)} requests, its limit; try again shortly",
                retry_after=1.0,
            )
        if not self._batching.alive:
            raise EngineFailed("the generation thread has ended; this replica is being replaced, try again")
        return max_tokens

    async def _events(
        self,
        request_id: str,
        results: asyncio.Queue[Output | Needs | RequestAborted],
        held: AsyncExitStack,
        prompt_tokens: int,
        sampling: Sampling,
    ) -> AsyncIterator[TokenEvent]:
        sent = 0
        late: TokenEvent | None = None
        while True:
            output = await results.get()
            if isinstance(output, Needs):
                if late is not None:
                    yield late
                    sent, late = sent + len(late.token_ids), None
                await held.aclose()
                pins = await held.enter_async_context(self._residency.pinned(output.names))
                self._batching.resume(request_id, pins)
                continue
            if isinstance(output, RequestAborted):
                raise output
            if output.error is not None:
                raise EngineFailed(f"the generation step failed ({output.error}); this replica is being replaced")
            tokens = output.token_ids
            stopped = output.finished and not sampling.ignore_eos and bool(tokens) and tokens[-1] in self._eos
            count = len(tokens) - stopped
            spans = self._batching.spans(request_id, prompt_tokens + count)
            event = TokenEvent(tokens[sent:count], output.logprobs[sent:count], spans=spans)
            if output.finished:
                yield replace(event, finish_reason="stop" if stopped else "length")
                return
            if count > sent:
                late = event
                if results.empty():  # else a newer output may say it all
                    yield late
                    sent, late = count, None

    async def _cancel(self, request_id: str) -> None:
        """Returns when the generation thread no longer touches the request. Not to be interrupted: until then its
        slots must stay pinned."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        self._batching.cancel(request_id, lambda: loop.call_soon_threadsafe(gone.set))
        waiting = asyncio.ensure_future(gone.wait())
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
