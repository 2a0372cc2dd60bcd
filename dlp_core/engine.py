"""Runs requests with different mixes in one batch: submit, stream, abort.

transformers' continuous batching (5.23) is the scheduler, the paged cache and the sampler. This is the only file
that touches it. What it adds to a step is one sentence: before the forward pass, tell fusion which tokens run
under which slots and weights.

    step:  schedule -> segments of the batch -> forward with fusion -> sample -> deliver

The seams used, each held by tests/test_engine_seam.py: `_generation_step` and `_generation_loop_body` of the
manager, `requests_in_batch` of its inputs, `_sample` of its model runner, `active_requests` and
`waiting_requests` of its scheduler. Block sharing is off: K and V depend on the mix, its block hashes do not.

`FusedEngine` belongs to one event loop; the model runs on the manager's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.requests import FutureRequestState, GenerationOutput

from dlp_core.config import EngineConfig
from dlp_core.errors import EngineFailed, EngineFull, InvalidRequest, PromptTooLong, RequestAborted
from dlp_core.layers import Fusion
from dlp_core.mix import Mix
from dlp_core.ops.segments import Segment
from dlp_core.residency import Residency

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request picks its tokens. temperature 0 is greedy. Raises InvalidRequest on a bad value."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {self.max_tokens}; it must be at least 1", param="max_tokens")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidRequest(f"temperature is {self.temperature}; it must be 0 or more", param="temperature")
        if not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p is {self.top_p}; it must be above 0 and at most 1", param="top_p")
        if self.top_k < 0:
            raise InvalidRequest(f"top_k is {self.top_k}; it must be 0 or more", param="top_k")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Tokens generated since the last event; the end-of-sequence token is not among them."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One moment of an engine, for metrics and routing."""

    running: int
    waiting: int
    """Requests that wait for their adapters."""
    resident: tuple[str, ...]
    pinned: int
    cache_free: float
    """Share of the paged cache that no request holds."""


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
        self._manager = _FusedManager(model, fusion, config, self._eos)
        self._streams: dict[str, asyncio.Queue[GenerationOutput | RequestAborted]] = {}
        self._running = 0

    def start(self) -> None:
        """Starts the generation thread and returns when it takes requests. Raises EngineFailed if it cannot, for
        instance because the cache does not fit into memory."""
        self._manager.start()
        self._manager.ready.wait()
        if not self._manager.alive:
            cause = self._manager.background_thread_status.fatal_error
            raise EngineFailed(f"the engine did not start: {cause}") from cause

    async def stop(self) -> None:
        """Ends the generation thread; requests in flight get EngineFailed."""
        await asyncio.to_thread(self._manager.stop, block=True, hard_stop=True)
        self._residency.close()

    async def submit(
        self, prompt_ids: list[int], mix: Mix, sampling: Sampling, *, request_id: str
    ) -> AsyncIterator[TokenEvent]:
        """Generates from `prompt_ids` under `mix` and yields tokens as they come; the last event has a finish reason.

        Closing the iterator aborts the request. However it ends, its adapters are unpinned and its cache blocks
        are free afterwards. Raises InvalidRequest, PromptTooLong, UnknownModel, AdapterRefused,
        AdapterUnavailable, EngineFull, EngineFailed, and RequestAborted after `abort`.
        """
        self._admit(prompt_ids, sampling, request_id)
        results: asyncio.Queue[GenerationOutput | RequestAborted] = asyncio.Queue()
        self._streams[request_id] = results
        last = None
        try:
            async with self._residency.pinned(mix.names) as slots:
                parts = tuple((slots[part.name], part.weight) for part in mix.adapters)
                self._running += 1
                try:
                    self._manager.add(request_id, prompt_ids, parts, sampling, results.put_nowait)
                    async for event in self._events(results, ignore_eos=sampling.ignore_eos):
                        if event.finish_reason is not None:
                            last = event
                            break
                        yield event
                finally:
                    self._running -= 1
                    if last is None:
                        await self._cancel(request_id)
                    else:
                        self._manager.forget(request_id)
        finally:
            del self._streams[request_id]
        assert last is not None
        yield last  # everything is released before a consumer can dawdle over the last event

    def abort(self, request_id: str) -> None:
        """Ends a request from outside: its stream raises RequestAborted. Unknown ids are ignored."""
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(RequestAborted(f"request {request_id} was aborted"))

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running,
            waiting=len(self._streams) - self._running,
            resident=tuple(self._residency.resident),
            pinned=self._residency.pinned_count,
            cache_free=self._manager.cache_free(),
        )

    def check_health(self) -> None:
        """Raises EngineFailed when the generation thread is gone, or has not finished a step for too long."""
        if not self._manager.alive:
            raise EngineFailed("the generation thread has ended; replace this replica")
        idle = time.monotonic() - self._manager.last_step
        if self._running and idle > self._config.stall_seconds:
            raise EngineFailed(
                f"no step finished for {idle:.0f} s with {self._running} requests running "
                f"(limit {self._config.stall_seconds:.0f} s); replace this replica"
            )

    def _admit(self, prompt_ids: list[int], sampling: Sampling, request_id: str) -> None:
        if request_id in self._streams:
            raise InvalidRequest(f"request id {request_id!r} is in use")
        if not prompt_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if not all(0 <= token < self.vocabulary for token in prompt_ids):
            raise InvalidRequest(f"the prompt has token ids outside 0..{self.vocabulary - 1}", param="prompt")
        if len(prompt_ids) + sampling.max_tokens > self.context:
            raise PromptTooLong(
                f"the prompt has {len(prompt_ids)} tokens and max_tokens is {sampling.max_tokens}; "
                f"together they may be at most {self.context}",
                param="prompt",
            )
        if len(self._streams) >= self._config.max_requests:
            raise EngineFull(
                f"this replica runs or queues {len(self._streams)} requests, its limit; try again shortly",
                retry_after=1.0,
            )
        if not self._manager.alive:
            raise EngineFailed("the generation thread has ended; this replica is being replaced, try again")

    async def _events(
        self, results: asyncio.Queue[GenerationOutput | RequestAborted], *, ignore_eos: bool
    ) -> AsyncIterator[TokenEvent]:
        sent = 0
        while True:
            output = await results.get()
            while not isinstance(output, RequestAborted) and not output.is_finished() and not results.empty():
                output = results.get_nowait()  # every output repeats all tokens so far: the newest says it all
            if isinstance(output, RequestAborted):
                raise output
            if output.error is not None:
                raise EngineFailed(f"the generation step failed ({output.error}); this replica is being replaced")
            tokens = output.generated_tokens
            stopped = output.is_finished() and not ignore_eos and bool(tokens) and tokens[-1] in self._eos
            fresh = tuple(tokens[sent : len(tokens) - 1 if stopped else len(tokens)])
            sent = len(tokens)
            if output.is_finished():
                yield TokenEvent(fresh, "stop" if stopped else "length")
                return
            if fresh:
                yield TokenEvent(fresh)

    async def _cancel(self, request_id: str) -> None:
        """Returns when the generation thread no longer touches the request. Not to be interrupted: until then its
        slots must stay pinned."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        self._manager.cancel(request_id, lambda: loop.call_soon_threadsafe(gone.set))
        waiting = asyncio.ensure_future(gone.wait())
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await waiting
            raise


class _FusedManager(ContinuousBatchingManager):  # type: ignore[misc]
    """transformers' manager with one addition to its step and a cancellation that says when it is done."""

    def __init__(self, model: Any, fusion: Fusion, config: EngineConfig, eos: frozenset[int]) -> None:
        super().__init__(
            model=model,
            generation_config=GenerationConfig(
                # The three per-request warpers exist only if the defaults are not neutral; each request sets its own.
                do_sample=True,
                temperature=0.5,
                top_k=2,
                top_p=0.5,
                eos_token_id=sorted(eos) or -1,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=config.page_tokens,
                num_blocks=-(-config.cache_tokens // config.page_tokens),
                max_batch_tokens=config.batch_tokens,
                max_requests_per_batch=min(config.max_requests, config.batch_tokens),
                allow_block_sharing=False,
                use_async_batching=False,
                use_cuda_graph=False,
                per_request_processors=True,
            ),
        )
        self.last_step = time.monotonic()
        self.ready = threading.Event()
        """Set once the loop runs, or has ended."""
        self._fusion = fusion
        self._parts: dict[str, tuple[tuple[int, float], ...]] = {}
        self._greedy: dict[str, bool] = {}
        self._cancelling: dict[str, Callable[[], object]] = {}
        self._ended = False
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the loop takes requests."""
        return not self._ended and bool(self.is_running())

    def add(
        self,
        request_id: str,
        prompt_ids: list[int],
        parts: tuple[tuple[int, float], ...],
        sampling: Sampling,
        deliver: Callable[[GenerationOutput], None],
    ) -> None:
        """Queues a request; `deliver` is called on the current event loop. Raises EngineFailed if the loop ended."""
        self._parts[request_id] = parts
        self._greedy[request_id] = sampling.greedy
        self.register_result_handler(request_id, deliver)
        accepted = self.add_request(
            prompt_ids,
            request_id=request_id,
            max_new_tokens=sampling.max_tokens,
            streaming=True,
            eos_token_id=-1 if sampling.ignore_eos else None,
            temperature=float(sampling.temperature) or 1.0,
            top_k=1 if sampling.greedy else sampling.top_k or int(self.model.config.get_text_config().vocab_size),
            top_p=float(sampling.top_p),
        )
        if accepted is None:
            raise EngineFailed("the generation thread has ended; this replica is being replaced, try again")

    def cancel(self, request_id: str, done: Callable[[], object]) -> None:
        """Cancels and forgets a request. `done` is called, on any thread, once no later step can touch it."""
        with self._lock:
            if not self._ended:
                self._cancelling[request_id] = done
                self.cancel_request(request_id)
                return
        self.forget(request_id)
        done()

    def forget(self, request_id: str) -> None:
        """Drops what is kept about a request that no later step can touch."""
        self._parts.pop(request_id, None)
        self._greedy.pop(request_id, None)
        with self.output_router._lock:
            self.output_router.result_handlers.pop(request_id, None)

    def cache_free(self) -> float:
        processor = self.batch_processor
        return 1.0 if processor is None else float(processor.cache.compute_free_capacity())

    def _generation_step(self) -> None:
        processor: ContinuousBatchProcessor = self.batch_processor
        batch: list[FutureRequestState] = processor.inputs_and_outputs.requests_in_batch
        sampled = not all(self._greedy[request.state.request_id] for request in batch)
        processor.model_runner.do_sample = sampled
        processor.logit_processor.do_processing = sampled
        segments = tuple(Segment(r.query_length, self._parts[r.state.request_id]) for r in batch)
        with self._fusion.batch(segments):
            super()._generation_step()

    def _generation_loop_body(self, batch_processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        self.ready.set()
        go_on = bool(super()._generation_loop_body(batch_processor, bootstrapping))
        self.last_step = time.monotonic()
        if self._cancelling:
            self._settle(batch_processor)
        return go_on

    def _run_generation_loop(self) -> None:
        super()._run_generation_loop()
        with self._lock:
            self._ended = True
            left = dict(self._cancelling)
            self._cancelling.clear()
        self.ready.set()
        for request_id, done in left.items():
            self.forget(request_id)
            done()

    def _settle(self, processor: ContinuousBatchProcessor) -> None:
        """Reports the cancelled requests that are out of the queue and the scheduler. One that slipped past its own
        cancellation (it was queued while the queues were being drained) is cancelled again."""
        scheduler = processor.scheduler
        queued = {state.request_id for state in list(self.input_queue.queue)}
        for request_id in list(self._cancelling):
            if request_id in scheduler.active_requests or request_id in scheduler.waiting_requests:
                scheduler.set_request_cancellation(request_id)
            elif request_id not in queued:
                with self._lock:
                    done = self._cancelling.pop(request_id)
                self.forget(request_id)
                done()

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        processor = super()._create_batch_processor()
        runner = processor.model_runner
        runner._sample = partial(self._sample, processor, runner._sample)
        return processor

    def _sample(
        self,
        processor: ContinuousBatchProcessor,
        library_sample: Callable[[Tensor, Tensor], None],
        scores: Tensor,
        output_ids: Tensor,
    ) -> None:
        """The library's sampler, except that greedy rows of a mixed batch take the argmax: top_k = 1 keeps every
        token that ties for the maximum, which bfloat16 logits often do, and would then draw among them."""
        library_sample(scores, output_ids)
        if processor.model_runner.do_sample:
            batch = processor.inputs_and_outputs.requests_in_batch
            greedy = [self._greedy[r.state.request_id] for r in batch if r.has_new_token]
            rows = torch.tensor(greedy, device=scores.device).nonzero().squeeze(-1)
            output_ids[0, rows] = scores[0, rows].argmax(dim=-1).to(output_ids.dtype)


def _eos_tokens(model: Any) -> frozenset[int]:
    for config in (model.generation_config, model.config.get_text_config()):
        eos = getattr(config, "eos_token_id", None)
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
    return frozenset()
