"""Which tokens of a batch run under which weighted adapters.

A batch of T tokens is a run of segments, one after the other. A segment is a request's tokens of this forward
pass, or a part of them when the mix changes inside a prompt. Decoding gives segments of one token.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` consecutive tokens under one mix. Filled by the engine, read by every op."""

    length: int
    parts: tuple[tuple[int, float], ...]
    """(slot, weight) of each adapter; empty for the plain backbone."""


def active_slots(segments: tuple[Segment, ...]) -> tuple[int, ...]:
    """Slots any token of the batch uses, ascending, each once."""
    return tuple(sorted({slot for segment in segments for slot, _ in segment.parts}))
