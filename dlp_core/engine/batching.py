"""transformers' continuous batching (5.23) with fusion in its step. Its internals are touched here, and those of its
cache in paged_attention.py.

transformers provides the scheduler and the paged cache. This file adds:

    before a forward pass   which tokens run under which slots and weights
    after it                requests that do not take the plain argmax pick their tokens, all at once
    between two passes      mixes change at sentence ends; a request whose next mix needs adapters that are not
                            pinned leaves the batch until they are, as if it had been preempted
    in a prompt's chunks    logits of every token, for requests that want the prompt's log-probabilities
    in block hashes         (token, mix) instead of the token alone: K and V depend on both
    in attention            each request reads its own pages (paged_attention.py)

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
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
    RequestStatus,
)

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.grammar import Guide
from dlp_core.engine.guard import finite
from dlp_core.engine.paged_attention import PagedAttention, attention_op, use_paged_attention
from dlp_core.engine.prompt_scores import PromptScores
from dlp_core.engine.request import Plan, Sampling, TokenLogprob
from dlp_core.engine.sampling import Row, Sampler, pick
from dlp_core.engine.timeline import Timeline
from dlp_core.errors import DLPError, EngineFailed, NotFinite, StepFailed
from dlp_core.fusion.layers import Fusion
from dlp_core.mix import Mix, Span
from dlp_core.residency.movement import Pin

log = logging.getLogger(__name__)

_NOT_FINITE = (
    "the model's output under this request's mix is infinite or not a number, so there is no next token; use other "
    "adapters or smaller weights"
)


@dataclass(frozen=True, slots=True)
class Output:
    """All tokens of a request so far. Each output includes the earlier ones, so the newest is enough."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finished: bool
    error: Exception | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


@dataclass(frozen=True, slots=True)
class NeedsAdapters:
    """The request waits, out of the batch, until these adapters are pinned and `resume` is called."""

    names: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Request:
    """What transformers does not know about a request."""

    timeline: Timeline
    sampler: Sampler
    notify: Callable[[Output | NeedsAdapters], object]
    follow: Callable[[int], Mix | None] | None
    followed_tokens: int
    """Tokens that are not passed to `follow` any more: the prompt's, and those it has seen."""
    prompt_scores: PromptScores | None = None
    """The log-probabilities of its prompt, if it wants them."""
    failed: bool = False
    """Whether it has ended with an error of its own. It stays in the batch until it is cancelled, but nothing of it is
    delivered or shared any more."""
    step_failed: bool = False
    """Whether it was in the batch whose step raised."""
    parked: tuple[RequestState, int, Mix] | None = None
    """While it is out of the batch: its state, the position where its mix changes, and the new mix."""


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
                use_cuda_graph=False,
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
        self._requests: dict[str, _Request] = {}
        self._resumed: queue.SimpleQueue[tuple[str, Mapping[str, Pin]]] = queue.SimpleQueue()
        self._cancelling: dict[str, Callable[[], object]] = {}
        self._attention: PagedAttention
        self._scores_RV = torch.empty(0)
        self._prompt_rows: list[tuple[_Request, str, int, int]] = []
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
        request = _Request(
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

    def cache_free(self) -> float:
        """Fraction of the cache that no request holds; blocks kept for sharing count as free."""
        processor = self.batch_processor
        if processor is None:
            return 1.0
        cache = processor.cache
        shareable = sum(len(a.ledger.cached_blocks) * a.bytes_per_block for a in cache.cache_allocators.values())
        return float(cache.compute_free_capacity() + shareable / (cache.num_sectors * cache.bytes_per_sector))

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
        batch: list[FutureRequestState] = self.batch_processor.inputs_and_outputs.requests_in_batch
        self._attention.begin(
            (r.state.request_id, r.state.position_offset - r.query_length, r.query_length) for r in batch
        )
        segments = tuple(
            segment
            for r in batch
            for segment in self._requests[r.state.request_id].timeline.segments(
                r.state.position_offset - r.query_length, r.query_length
            )
        )
        ends = accumulate(r.query_length for r in batch)
        head_rows = [end - 1 for end, r in zip(ends, batch, strict=True) if r.has_new_token]
        head_rows += [0] * (len(batch) - len(head_rows))  # a row per request: the library leaves the rest at token 0
        self._prompt_rows = self._rows_of_prompts(batch)
        try:
            with self._fusion.batch(segments, [*head_rows, *(row for *_, row in self._prompt_rows)]):
                super()._generation_step()
            self._pick(batch)
        except Exception:
            # Rows cannot fail alone here. Those that have not answered yet are suspects: see StepFailed.
            for state in (r.state for r in batch):
                self._requests[state.request_id].step_failed = True
            log.exception("the generation step failed; it computed %s", [r.state.request_id for r in batch])
            raise

    def _rows_of_prompts(self, batch: Sequence[FutureRequestState]) -> list[tuple[_Request, str, int, int]]:
        """The tokens of a batch whose logits score a prompt: request, its id, the position there and in the batch."""
        rows, offset = [], 0
        for r in batch:
            request = self._requests[r.state.request_id]
            if request.prompt_scores is not None and not request.failed:
                start = r.state.position_offset - r.query_length
                for position in request.prompt_scores.missing(start, r.query_length):
                    rows.append((request, r.state.request_id, position, offset + position - start))
            offset += r.query_length
        return rows

    def _forward(
        self, library_forward: Callable[..., None], model: Any, batch_data: dict[str, Any], *tensors: Tensor
    ) -> None:
        """The library's forward pass and sampling, with this file's attention, and with logits for the rows of prompts
        after its own."""
        batch_data = batch_data | {"cache": self._attention}
        if self._prompt_rows:
            own = batch_data["logits_indices"]
            indices = torch.cat([own, own.new_tensor([row for *_, row in self._prompt_rows])])
            keep = {"logits_to_keep": indices} if "logits_to_keep" in batch_data else {}
            batch_data = batch_data | {"logits_indices": indices} | keep
        library_forward(model, batch_data, *tensors)

    def _sample(self, library_sample: Callable[[Tensor, Tensor], None], scores: Tensor, output_ids: Tensor) -> None:
        """Take the library's argmax for all rows. `_pick` then overwrites those of the other samplers."""
        own = scores.shape[1] - len(self._prompt_rows)
        library_sample(scores[:, :own], output_ids)
        self._scores_RV = scores[0]

    def _pick(self, batch: Sequence[FutureRequestState]) -> None:
        """Pick the tokens of rows that do not take the argmax. What goes wrong in a row ends its request alone."""
        own = len(self._scores_RV) - len(self._prompt_rows)
        scores_RV = self._scores_RV[:own]
        self._score_prompts(self._scores_RV[own:])
        lengths, scored = [r.query_length for r in batch], [r.has_new_token for r in batch]
        rows, requests, row = list[Row](), list[tuple[_Request, str]](), 0
        for ok, r in zip(finite(scores_RV, self._attention.overflowed(), lengths, scored), batch, strict=True):
            request = self._requests[r.state.request_id]
            if not ok:
                self._fail(request, r.state.request_id, NotFinite(_NOT_FINITE))
            elif r.has_new_token and not request.sampler.is_argmax:
                rows.append(Row(row, request.sampler, r.state.initial_tokens + r.state.generated_tokens))
                requests.append((request, r.state.request_id))
            row += r.has_new_token
        if not rows:
            return
        found = dict[int, int]()
        for picked, own_row, (request, request_id) in zip(pick(scores_RV, rows), rows, requests, strict=True):
            if isinstance(picked, Exception):
                self._fail(request, request_id, picked)
            else:
                found[own_row.number] = picked
        if found:
            output_ids = self.batch_processor.inputs_and_outputs.output_ids
            output_ids[0, list(found)] = torch.tensor(list(found.values()), dtype=torch.int32).to(output_ids.device)

    def _score_prompts(self, scores_RV: Tensor) -> None:
        for logits_V, (request, request_id, position, _) in zip(scores_RV, self._prompt_rows, strict=True):
            if request.prompt_scores is not None and not request.failed:
                try:
                    request.prompt_scores.add(position, logits_V)
                except Exception as error:
                    self._fail(request, request_id, error)

    def _fail(self, request: _Request, request_id: str, error: Exception) -> None:
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
        runner, cache = processor.model_runner, processor.cache
        runner._sample = partial(self._sample, runner._sample)
        runner._forward_process_and_sample = partial(self._forward, runner._forward_process_and_sample)
        requests = self.continuous_batching_config.max_requests_per_batch
        self._attention = PagedAttention(cache, attention_op(self.model, cache, requests))
        cache.search_prefix_match = partial(self._search_prefix_match, cache.search_prefix_match)
        cache.mark_complete_blocks = partial(self._mark_complete_blocks, cache.mark_complete_blocks)
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
        self, processor: ContinuousBatchProcessor, request: _Request, state: RequestState, position: int, mix: Mix
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


def _deliver(output: GenerationOutput, request: _Request, deliver: Callable[[Output], None]) -> None:
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
