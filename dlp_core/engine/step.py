"""One forward pass of a batch: transformers' own, with mixes in its layers and our attention; then the picks.

On CUDA devices, passes in which every request computes one token are CUDA graphs, one for each number of requests
rounded up to a power of two. The plans of fusion and attention lie in buffers that never move, so one graph serves all
mixes and lengths. Nothing is picked inside a graph: it copies the scores to a buffer, and picks are made after it.

tests/dlp_core/engine/test_seam.py checks every internal that is used here. Used on the generation thread.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    RequestStatus,
    create_warmup_future_states,
)

from dlp_core.engine.guard import finite, finite_rows
from dlp_core.engine.paged_attention import PagedAttention
from dlp_core.engine.prompt_scores import PromptScores
from dlp_core.engine.running import Running
from dlp_core.engine.sampling import Likeliest, Picks, Row
from dlp_core.engine.transfer import to_device, to_host
from dlp_core.errors import NotFinite
from dlp_core.fusion.layers import Fusion
from dlp_core.fusion.segments import Segment

log = logging.getLogger(__name__)

_NOT_FINITE = (
    "the model's output under this request's mix is infinite or not a number, so there is no next token; use other "
    "adapters or smaller weights"
)

Fail = Callable[[Running, str, Exception], None]
"""Ends a request with an error."""


def has_graphs(device: torch.device) -> bool:
    """Whether passes on this device can be captured."""
    return device.type == "cuda"


class Steps:
    """The forward passes of one processor."""

    def __init__(
        self,
        processor: ContinuousBatchProcessor,
        fusion: Fusion,
        attention: PagedAttention,
        requests: Mapping[str, Running],
        fail: Fail,
    ) -> None:
        """`requests` are those that may be in a batch, by id."""
        self._processor = processor
        self._io = processor.inputs_and_outputs
        self._runner = processor.model_runner
        self._fusion = fusion
        self._attention = attention
        self._requests = requests
        self._fail = fail
        self._prompt_rows: list[tuple[PromptScores, int, int]] = []
        self._scores_RV = torch.empty(0)
        self._graphs = self._runner.use_cuda_graph_decode
        self._fixed_scores_RV: Tensor | None = None
        """Where a graph leaves its scores."""
        self._runner._sample = partial(self._sample, self._runner._sample)
        self._runner._forward_process_and_sample = partial(self._forward, self._runner._forward_process_and_sample)
        if self._graphs:
            self._allow_graphs()

    @property
    def graphs(self) -> int:
        """CUDA graphs captured so far."""
        return len(self._io.graphs._storage)

    def run(self, compute: Callable[[], object]) -> None:
        """One pass over the batch that the processor has prepared, by `compute`, which is the library's."""
        batch: list[FutureRequestState] = self._io.requests_in_batch
        segments = [
            segment
            for r in batch
            for segment in self._requests[r.state.request_id].timeline.segments(
                r.state.position_offset - r.query_length, r.query_length
            )
        ]
        self._prompt_rows = self._rows_of_prompts(batch)
        self._enter(batch, segments, compute)
        self._pick(batch)

    def capture(self, model: Any) -> None:
        """Capture all graphs, before there are requests. A no-op without graphs."""
        if not self._graphs:
            return
        largest = self._io.max_requests_per_batch
        sizes = [1 << n for n in range(largest.bit_length()) if 1 << n < largest] + [largest]
        for number, size in enumerate(sizes, 1):
            states = create_warmup_future_states(size, RequestStatus.DECODING, 1, 1, self._processor.cache)
            try:
                padded, _ = self._runner.maybe_pad_inputs(len(states), 0, use_decode_fast_path=True)
                self._io.prepare_batch_tensors(states, self._processor.logit_processor, True, padded, 0, True)
                self._enter(states, [], lambda: self._processor._generation_step(model))
            finally:
                for state in states:
                    self._processor.cache.free_blocks(state.state.request_id, no_cache=True)
            log.info("captured CUDA graph %d of %d: %d requests", number, len(sizes), size)
        self._processor.cache.reset()

    def _enter(
        self, batch: Sequence[FutureRequestState], segments: Sequence[Segment], compute: Callable[[], object]
    ) -> None:
        """Run `compute` inside this batch. It may be padded: what is not covered by `segments` is nobody's."""
        self._attention.begin(
            (r.state.request_id, r.state.position_offset - r.query_length, r.query_length) for r in batch
        )
        ends = accumulate(r.query_length for r in batch)
        head_rows = [end - 1 for end, r in zip(ends, batch, strict=True) if r.has_new_token]
        # a row per request, padded ones included: the library leaves the rest at token 0
        head_rows += [0] * (self._io._get_num_sequences(self._runner.pad_inputs) - len(head_rows))
        self._runner.use_cuda_graph_decode = self._graphs and not self._prompt_rows
        with self._fusion.batch(self._padded(segments), [*head_rows, *(row for *_, row in self._prompt_rows)]):
            if self._io.compute_stream is not None:  # inputs and plans are copied on the current one
                self._io.compute_stream.wait_stream(torch.cuda.current_stream(self._io.device))
            compute()

    def _padded(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
        padding = self._io.num_q_tokens - sum(segment.length for segment in segments)
        return (*segments, Segment(padding, ())) if padding else tuple(segments)

    def _allow_graphs(self) -> None:
        """Let the library take its path for graphs, by block tables, whose contents nobody reads."""
        cache, io = self._processor.cache, self._io
        cache.max_blocks_per_request = 1
        cache.max_decode_fast_path_length = sys.maxsize
        cache.fill_block_table = lambda *_: None
        io.block_table = io.block_table.new_empty(len(cache.cache_allocators), io.max_requests_per_batch, 1)

    def _rows_of_prompts(self, batch: Sequence[FutureRequestState]) -> list[tuple[PromptScores, int, int]]:
        """The tokens of a batch whose logits score a prompt: its scores, the position there and in the batch."""
        rows, offset = [], 0
        for r in batch:
            request = self._requests[r.state.request_id]
            if request.prompt_scores is not None and not request.failed:
                start = r.state.position_offset - r.query_length
                for position in request.prompt_scores.missing(start, r.query_length):
                    rows.append((request.prompt_scores, position, offset + position - start))
            offset += r.query_length
        return rows

    def _forward(
        self, library_forward: Callable[..., None], model: Any, batch_data: dict[str, Any], *tensors: Tensor
    ) -> None:
        """The library's forward pass and argmax, with our attention, and with logits for the rows of prompts after its
        own."""
        batch_data = batch_data | {"cache": self._attention}
        if self._prompt_rows:
            own = batch_data["logits_indices"]
            rows = to_device([row for *_, row in self._prompt_rows], own)
            indices = torch.cat([own, rows.to(own.dtype)])
            keep = {"logits_to_keep": indices} if "logits_to_keep" in batch_data else {}
            batch_data = batch_data | {"logits_indices": indices} | keep
        library_forward(model, batch_data, *tensors)

    def _sample(self, library_sample: Callable[[Tensor, Tensor], None], scores: Tensor, output_ids: Tensor) -> None:
        """Take the library's argmax for all rows, and keep the scores: `_pick` overwrites those of other samplers."""
        own = scores.shape[1] - len(self._prompt_rows)
        library_sample(scores[:, :own], output_ids)
        if self._in_graph:
            if self._fixed_scores_RV is None:
                self._fixed_scores_RV = scores.new_empty(self._io.max_requests_per_batch, scores.shape[2])
            self._fixed_scores_RV[:own].copy_(scores[0])
        else:
            self._scores_RV = scores[0]

    @property
    def _in_graph(self) -> bool:
        return bool(self._runner.use_cuda_graph_decode and self._io.use_block_table)

    def _pick(self, batch: Sequence[FutureRequestState]) -> None:
        """Pick the tokens of rows that do not take the argmax. What goes wrong in a row ends its request alone. Waits
        for the device once."""
        prompts = None
        if self._in_graph:
            assert self._fixed_scores_RV is not None
            scores_RV = self._fixed_scores_RV[: len(batch)]
        else:
            own = len(self._scores_RV) - len(self._prompt_rows)
            scores_RV = self._scores_RV[:own]
            prompts = self._score_prompts(self._scores_RV[own:])
        lengths, scored = [r.query_length for r in batch], [r.has_new_token for r in batch]
        finite_R = finite_rows(scores_RV[: sum(scored)])
        rows, chosen, row = list[Row](), list[FutureRequestState](), 0
        for r in batch:
            request = self._requests[r.state.request_id]
            if r.has_new_token and not request.sampler.is_argmax:
                rows.append(Row(row, request.sampler, r.state.initial_tokens + r.state.generated_tokens))
                chosen.append(r)
            row += r.has_new_token
        picks = Picks(scores_RV, rows) if rows else None
        if picks is not None:
            output_ids = self._io.output_ids
            output_ids[0, to_device([own.number for own in rows], output_ids)] = picks.tokens_R.to(output_ids.dtype)
        wanted = [picks.tensors if picks else [], prompts.tensors if prompts else []]
        marks, finite_row, *found = to_host([self._attention.overflowed(), finite_R, *wanted[0], *wanted[1]])
        for ok, r in zip(finite(finite_row.tolist(), marks.tolist(), lengths, scored), batch, strict=True):
            if not ok:
                self._fail(self._requests[r.state.request_id], r.state.request_id, NotFinite(_NOT_FINITE))
        if picks is not None:
            for picked, r in zip(picks.finish(found[: len(wanted[0])]), chosen, strict=True):
                if isinstance(picked, Exception):
                    self._fail(self._requests[r.state.request_id], r.state.request_id, picked)
        if prompts is not None:
            logprobs = prompts.finish(found[len(wanted[0]) :])
            for logprob, (scores, position, _) in zip(logprobs, self._prompt_rows, strict=True):
                scores.add(position, logprob)

    def _score_prompts(self, scores_RV: Tensor) -> Likeliest | None:
        """The log-probabilities of the tokens after these rows, which are those of `_prompt_rows`."""
        if not self._prompt_rows:
            return None
        tokens_R = to_device([scores.token(position) for scores, position, _ in self._prompt_rows], scores_RV)
        return Likeliest(scores_RV.log_softmax(-1), tokens_R, [scores.count for scores, *_ in self._prompt_rows])
