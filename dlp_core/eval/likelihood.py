"""Log-likelihoods of several answers to one prompt, under several plans.

All go through one forward pass: a packed row holds the prompt once, then each answer, which attends to the prompt and
to itself (dlp_core/train/packing.py), and there is such a row for each plan. Each runs under the same mixes as the
request would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from dlp_core.engine.request import Plan
from dlp_core.fusion.layers import Fusion
from dlp_core.fusion.segments import Segment
from dlp_core.residency.movement import Pin
from dlp_core.train.packing import IGNORED, Example, collate


@contextmanager
def unpaged_attention(model: Any) -> Iterator[None]:
    """Switch the model from paged attention to sdpa, so that one pass covers a prompt. No request may run meanwhile."""
    paged = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.config._attn_implementation = paged  # which is not one of the library's own


@torch.no_grad()
def log_likelihoods(
    model: Any,
    fusion: Fusion,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    *,
    plans: Sequence[Plan],
    pins: Mapping[str, Pin],
) -> list[list[float]]:
    """Natural log-likelihood of each answer after `prompt`, all in token ids, for each plan. The answers run under the
    plan's last mix. Call inside `unpaged_attention`."""
    # The prompt's last token goes with each answer: it predicts the first of its tokens.
    shared = len(prompt) - 1
    examples = [Example(tuple(prompt), tuple(answer)) for answer in answers]
    batch = collate([examples] * len(plans), shared)
    device = next(model.parameters()).device
    rows = [
        (
            *_segments(plan, pins, 0, shared),
            *(segment for answer in answers for segment in _segments(plan, pins, shared, len(answer))),
        )
        for plan in plans
    ]
    with fusion.batch(tuple(chain.from_iterable(rows))):
        hidden_BTD = model.base_model(
            input_ids=batch.input_ids_BT.to(device),
            attention_mask=batch.mask_B1TT.to(device),
            position_ids=batch.position_ids_BT.to(device),
            use_cache=False,
        ).last_hidden_state
    labels_BT = batch.labels_BT.to(device)
    chosen_BT = labels_BT != IGNORED
    with fusion.batch(tuple(chain.from_iterable(_after(row, shared) for row in rows))):
        logits = model.get_output_embeddings()(hidden_BTD[chosen_BT])
    logprobs = logits.float().log_softmax(-1).gather(-1, labels_BT[chosen_BT][:, None])[:, 0]
    sums = [float(part.sum()) for part in logprobs.split([len(answer) for answer in answers] * len(plans))]
    return [sums[first : first + len(answers)] for first in range(0, len(sums), len(answers))]


def _segments(plan: Plan, pins: Mapping[str, Pin], start: int, length: int) -> list[Segment]:
    """The segments that cover `length` positions from `start` on."""
    segments, until = [], start + length
    ends = [*(begin for begin, _ in plan.spans[1:]), until]
    for (_, mix), end in zip(plan.spans, ends, strict=True):
        stop = min(end, until)
        if stop > start:
            segments.append(Segment(stop - start, tuple((pins[part.name].slot, part.weight) for part in mix.adapters)))
            start = stop
    return segments


def _after(segments: Sequence[Segment], shared: int) -> tuple[Segment, ...]:
    """The segments after the first `shared` tokens."""
    kept, position = [], 0
    for segment in segments:
        if position >= shared:
            kept.append(segment)
        position += segment.length
    return tuple(kept)
