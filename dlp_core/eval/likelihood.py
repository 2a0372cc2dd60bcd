"""How likely a model finds each of several answers to one prompt.

All answers go through one forward pass: a row of tokens that holds the prompt once, then each answer, which sees the
prompt and itself (dlp_core/train/packing.py). The pass runs under the mixes the request would run under.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dlp_core.engine.request import Plan
from dlp_core.fusion.layers import Fusion
from dlp_core.fusion.segments import Segment
from dlp_core.residency.movement import Pin
from dlp_core.train.packing import IGNORED, Example, collate


@contextmanager
def whole_prompts(model: Any) -> Iterator[None]:
    """Lets the model see a prompt in one pass, as it does outside of an engine. No request may run meanwhile."""
    paged = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(paged)


@torch.no_grad()
def log_likelihoods(
    model: Any,
    fusion: Fusion,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    *,
    plan: Plan,
    pins: Mapping[str, Pin],
) -> list[float]:
    """Natural logarithms of the answers' probabilities after `prompt`, all in token ids. What follows the prompt runs
    under the plan's last mix. Inside of `whole_prompts`."""
    # The prompt's last token goes with each answer: it predicts the first of its tokens.
    shared = len(prompt) - 1
    batch = collate([[Example(tuple(prompt), tuple(answer)) for answer in answers]], shared)
    device = next(model.parameters()).device
    segments = (
        *_segments(plan, pins, 0, shared),
        *(piece for answer in answers for piece in _segments(plan, pins, shared, len(answer))),
    )
    with fusion.batch(segments):
        hidden_BTD = model.base_model(
            input_ids=batch.input_ids_BT.to(device),
            attention_mask=batch.mask_B1TT.to(device),
            position_ids=batch.position_ids_BT.to(device),
            use_cache=False,
        ).last_hidden_state
    labels_BT = batch.labels_BT.to(device)
    chosen_BT = labels_BT != IGNORED
    with fusion.batch(_alone(segments, shared)):
        logits = model.get_output_embeddings()(hidden_BTD[chosen_BT])
    logprobs = logits.float().log_softmax(-1).gather(-1, labels_BT[chosen_BT][:, None])[:, 0]
    return [float(part.sum()) for part in logprobs.split([len(answer) for answer in answers])]


def _segments(plan: Plan, pins: Mapping[str, Pin], start: int, length: int) -> list[Segment]:
    """The mixes of so many positions from `start` on."""
    found = []
    ends = [*(begin for begin, _ in plan.spans[1:]), start + length]
    for (_, mix), until in zip(plan.spans, ends, strict=True):
        stop = min(until, start + length)
        if stop > start:
            found.append(Segment(stop - start, tuple((pins[part.name].slot, part.weight) for part in mix.adapters)))
            start = stop
    return found


def _alone(segments: Sequence[Segment], shared: int) -> tuple[Segment, ...]:
    """The segments after the first `shared` tokens."""
    kept, at = [], 0
    for segment in segments:
        if at >= shared:
            kept.append(segment)
        at += segment.length
    return tuple(kept)
