"""transformers' continuous batching (5.23), with mixes.

transformers provides the scheduler and the paged cache. What is added:

    a step                  fusion, our attention, and picks for all rows at once (step.py, paged_attention.py)
    between two steps       mixes change at sentence ends; a request whose next mix needs adapters that are not
                            pinned leaves the batch until they are, as if it had been preempted
    in block hashes         (token, mix) instead of the token alone: K and V depend on both
    around all              cancellations that report when they are done

tests/dlp_core/engine/test_seam.py checks every internal that is used here. Private methods run on the generation
thread unless they say otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.requests import (
    GenerationOutput,
    RequestState,
    RequestStatus,
)

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.paged_attention import PagedAttention, attention_op, use_paged_attention
from dlp_core.engine.prompt_scores import PromptScores
from dlp_core.engine.request import Plan, Sampling
from dlp_core.engine.running import NeedsAdapters, Output, Running
from dlp_core.engine.sampling import Sampler
from dlp_core.engine.step import Steps, has_graphs
from dlp_core.engine.timeline import Timeline
from dlp_core.errors import DLPError, EngineFailed, StepFailed
from dlp_core.fusion.layers import Fusion
from dlp_core.mix import Mix, Span
from dlp_core.residency.movement import Pin

if TYPE_CHECKING:
    from dlp_core.engine.grammar import Guide

log = logging.getLogger(__name__)


class Batching(ContinuousBatchingManager):  # type: ignore[misc]
    """transformers' manager, with mixes in its step and a cancellation that reports when it is done."""

    def __init__(
        self,
        model: Any,
        fusion: Fusion,
        config: EngineConfig,
        *,
        eos: frozenset[int],
        can_hold: Callable[[Sequence[str]], bool],
    ) -> None:
        """`can_hold(names)` tells whether those adapters can ever be on the device together. Raises InvalidRequest if
        the model's attention cannot read a paged cache."""
        use_paged_attention(model)
        super().__init__(
            model=model,
            generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(eos) or -1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=config.page_tokens,
                num_blocks=-(-config.cache_tokens // config.page_tokens),
                max_batch_tokens=config.batch_tokens,
                max_requests_per_batch=min(config.max_requests, config.batch_tokens),
                allow_block_sharing=True,
                use_async_batching=False,
                use_cuda_graph=(False, config.cuda_graphs and has_graphs(model.device)),  # with prompts, without
                q_padding_interval_size=1,
                kv_padding_interval_size=1,
            ),
        )
        self.last_step = time.monotonic()
        self.ready = threading.Event()
        """Set once the loop runs, or has ended."""
        self.shared_tokens = 0
        """Prompt tokens since the start that were not computed, because another request had left them in the cache."""
        self._threads = torch.get_num_threads()
        self._fusion = fusion
        self._can_hold = can_hold
        self._eos = eos
        self._requests: dict[str, Running] = {}
        self._resumed: queue.SimpleQueue[tuple[str, Mapping[str, Pin]]] = queue.SimpleQueue()
        self._cancelling: dict[str, Callable[[], object]] = {}
        self._steps: Steps
        self._ended = False
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the loop accepts requests."""
        return not self._ended and bool(self.is_running())

    # ------------------------------------------------------------------ called from the event loop

    def add(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling: Sampling,
        *,
        plan: Plan,
        pins: Mapping[str, Pin],
        guide: Guide | None,
        prompt_logprobs: int | None,
        deliver: Callable[[Output | NeedsAdapters], None],
    ) -> None:
        """Queue a request; `deliver` is called on the current event loop. `guide` restricts its tokens;
        `prompt_logprobs` is how many alternatives to report for each token of the prompt, None for no report. Raises
        EngineFailed if the loop has ended."""
        loop = asyncio.get_running_loop()
        request = Running(
            timeline=Timeline(plan, pins),
            sampler=Sampler(sampling, len(prompt_ids), self._eos, guide),
            notify=lambda item: loop.call_soon_threadsafe(deliver, item),
            follow=plan.follow,
            followed_tokens=len(prompt_ids),
            prompt_scores=None if prompt_logprobs is None else PromptScores(prompt_ids, prompt_logprobs),
        )
        self._requests[request_id] = request
        self.register_result_handler(request_id, lambda output: _deliver(output, request, deliver))
        accepted = self.add_request(
            prompt_ids,
            request_id=request_id,
            max_new_tokens=sampling.max_tokens,
            streaming=True,
            eos_token_id=-1 if sampling.ignore_eos else None,
        )
        if accepted is None:
            raise _thread_ended()

    def resume(self, request_id: str, pins: Mapping[str, Pin]) -> None:
        """Let a request that needed adapters back into the batch. Raises EngineFailed if the loop has ended."""
        with self._lock:
            if self._ended:
                raise _thread_ended()
            self._resumed.put((request_id, pins))
        self._wake_up_loop.set()

    def cancel(self, request_id: str, done: Callable[[], object]) -> None:
        """Cancel and forget a request. `done` is called, on any thread, once no later step can touch it."""
        with self._lock:
            if not self._ended:
                self._cancelling[request_id] = done
                self.cancel_request(request_id)
                return
        self.forget(request_id)
        done()

    def forget(self, request_id: str) -> None:
        """Drop the record of a request that no later step can touch."""
        self._requests.pop(request_id, None)
        with self.output_router._lock:
            self.output_router.result_handlers.pop(request_id, None)

    def spans(self, request_id: str, tokens: int) -> tuple[Span, ...]:
        """The mixes of the first `tokens` tokens of a request. To be called before `forget`."""
        return self._requests[request_id].timeline.spans(tokens)

    def found_in_cache(self, request_id: str) -> int:
        """Tokens of a request's prompt."""
        return self._requests[request_id].cached_tokens or 0

    def cache_free(self) -> float:
        """Fraction of the cache that no request holds; blocks kept for sharing count as free."""
        processor = self.batch_processor
        if processor is None:
            return 1.0
        cache = processor.cache
        shareable = sum(len(a.ledger.cached_blocks) * a.bytes_per_block for a in cache.cache_allocators.values())
        return float(cache.compute_free_capacity() + shareable / (cache.num_sectors * cache.bytes_per_sector))

    @property
    def cuda_graphs(self) -> int:
        """CUDA graphs captured."""
        return 0 if self.batch_processor is None else self._steps.graphs

    def cached_tokens(self) -> dict[str, int]:
        """Tokens that the cache holds, by request id, of the requests in the batch."""
        processor = self.batch_processor
        if processor is None:
            return {}
        return {
            state.request_id: state.position_offset for state in processor.scheduler.active_requests.copy().values()
        }

    # ------------------------------------------------------------------ the step

    def _generation_step(self) -> None:
        try:
            self._steps.run(super()._generation_step)
        except Exception:
            # Rows cannot fail alone here. Those that have not answered yet are suspects: see StepFailed.
            batch = [r.state.request_id for r in self.batch_processor.inputs_and_outputs.requests_in_batch]
            for request_id in batch:
                self._requests[request_id].step_failed = True
            log.exception("the generation step failed; it computed %s", batch)
            raise

    def _fail(self, request: Running, request_id: str, error: Exception) -> None:
        """End a request with an error. The engine then cancels it."""
        if request.failed:
            return
        request.failed = True
        log.warning(
            "request %s under %s ends, alone: %s",
            request_id,
            ", ".join(request.timeline.names) or "no adapter",
            error,
            exc_info=None if isinstance(error, DLPError) else error,
        )
        request.notify(Output((), (), finished=True, error=error))

    def _generation_loop_body(self, batch_processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        self.ready.set()
        self._readmit(batch_processor)
        keep_running = bool(super()._generation_loop_body(batch_processor, bootstrapping))
        self.last_step = time.monotonic()
        self._run_followers(batch_processor)
        if self._cancelling:
            self._confirm_cancellations(batch_processor)
        return keep_running

    def _run_generation_loop(self) -> None:
        torch.set_num_threads(self._threads)  # a new thread inherits the last value set, and load threads set 1
        super()._run_generation_loop()
        with self._lock:
            self._ended = True
            unconfirmed = dict(self._cancelling)
            self._cancelling.clear()
        self.ready.set()
        for request_id, done in unconfirmed.items():
            self.forget(request_id)
            done()
        # The library has notified the requests it knew of, but none that were leaving or re-entering the batch.
        for request in list(self._requests.values()):
            with suppress(RuntimeError):  # its event loop is closed
                request.notify(Output((), (), finished=True, error=_thread_ended()))

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        processor = super()._create_batch_processor()
        cache = processor.cache
        requests = self.continuous_batching_config.max_requests_per_batch
        attention = PagedAttention(cache, attention_op(self.model, cache, requests))
        self._steps = Steps(processor, self._fusion, attention, self._requests, self._fail)
        cache.search_prefix_match = partial(self._search_prefix_match, cache.search_prefix_match)
        cache.mark_complete_blocks = partial(self._mark_complete_blocks, cache.mark_complete_blocks)
        self._steps.capture(self.model)
        return processor

    # ------------------------------------------------------------------ mixes that change

    def _run_followers(self, processor: ContinuousBatchProcessor) -> None:
        """Pass the tokens of the last step to the followers, and change mixes as they decide."""
        for request_id, request in list(self._requests.items()):
            state = processor.scheduler.active_requests.get(request_id) if request.follow else None
            if state is None or request.follow is None or request.failed:
                continue
            tokens = state.initial_tokens + state.generated_tokens
            try:
                for position in range(request.followed_tokens, len(tokens)):
                    mix = request.follow(tokens[position])
                    if mix is not None:
                        self._change_mix(processor, request, state, position, mix)
            except Exception as error:
                self._fail(request, request_id, error)
            request.followed_tokens = len(tokens)

    def _change_mix(
        self, processor: ContinuousBatchProcessor, request: Running, state: RequestState, position: int, mix: Mix
    ) -> None:
        names = tuple(dict.fromkeys((*request.timeline.names, *mix.names)))
        if request.timeline.has_pinned(mix):
            request.timeline.change(position, mix)
        elif self._can_hold(names):
            # Leave the batch, as in a preemption: complete blocks stay cached, so little is computed again.
            # The request must not keep its adapters while it waits for others: two such requests could deadlock.
            restarted = state.create_equivalent_initial_request()
            state._status = RequestStatus.FINISHED
            processor.scheduler.finish_request(state.request_id)
            processor.scheduler.block_new_requests = False
            request.parked = (restarted, position, mix)
            log.debug("request %s waits for adapters %s", state.request_id, names)
            request.notify(NeedsAdapters(names))
        # else the adapters needed to recompute the request can never be pinned together: the mix stays as it is

    def _readmit(self, processor: ContinuousBatchProcessor) -> None:
        while True:
            try:
                request_id, pins = self._resumed.get_nowait()
            except queue.Empty:
                return
            request = self._requests.get(request_id)
            if request is not None and request.parked is not None:
                (state, position, mix), request.parked = request.parked, None
                request.timeline.update_pins(pins)
                request.timeline.change(position, mix)
                processor.scheduler.add_waiting_request(state)

    def _confirm_cancellations(self, processor: ContinuousBatchProcessor) -> None:
        """Report cancelled requests that have left the queue and the scheduler. One that escaped its cancellation,
        because it was queued while the queues were drained, is cancelled again."""
        scheduler = processor.scheduler
        # After a preemption the library admits no request until one has finished, and a cancelled one never finishes.
        scheduler.block_new_requests = False
        queued = {state.request_id for state in list(self.input_queue.queue)}
        for request_id in list(self._cancelling):
            if request_id in scheduler.active_requests or request_id in scheduler.waiting_requests:
                scheduler.set_request_cancellation(request_id)
            elif request_id not in queued:
                with self._lock:
                    done = self._cancelling.pop(request_id)
                self.forget(request_id)
                done()

    # ------------------------------------------------------------------ blocks shared by token and mix

    def _search_prefix_match(
        self, library_search: Callable[[str, list[int]], int], request_id: str, prompt_ids: list[int]
    ) -> int:
        request = self._requests[request_id]
        if request.prompt_scores is not None and not request.prompt_scores.complete:
            return 0  # the cache holds keys and values, but no logits
        matched = library_search(request_id, request.timeline.salted_ids(prompt_ids))
        self.shared_tokens += matched
        if request.cached_tokens is None:  # not what a preempted request finds of its own
            request.cached_tokens = matched
        return matched

    def _mark_complete_blocks(
        self,
        library_mark: Callable[[Any, dict[str, int]], None],
        state: RequestState,
        complete_blocks: dict[str, int],
    ) -> None:
        if complete_blocks and not self._requests[state.request_id].failed:
            tokens = (state.initial_tokens + state.generated_tokens)[: state.position_offset]
            salted_ids = self._requests[state.request_id].timeline.salted_ids(tokens)
            library_mark(
                SimpleNamespace(
                    request_id=state.request_id, status=state.status, initial_tokens=salted_ids, generated_tokens=[]
                ),
                complete_blocks,
            )


def _deliver(output: GenerationOutput, request: Running, deliver: Callable[[Output], None]) -> None:
    """Deliver what the library says of a request, unless the request has ended with an error of its own."""
    if request.failed:
        return
    tokens, error = tuple(output.generated_tokens), None
    if output.error is not None:
        error = _step_failed(output.error) if request.step_failed else _thread_ended()
    logprobs = tuple(request.sampler.logprobs[: len(tokens)])
    prompt_logprobs = () if request.prompt_scores is None else request.prompt_scores.logprobs
    deliver(Output(tokens, logprobs, output.is_finished(), error, prompt_logprobs))


def _thread_ended() -> EngineFailed:
    return EngineFailed("the generation thread has ended; this replica is being replaced, try again")


def _step_failed(cause: str) -> StepFailed:
    return StepFailed(f"the step that computed this request failed ({cause}); this replica is being replaced")
