"""Which tokens of a batch run under which weighted adapters.

A batch of T tokens is a sequence of segments. A segment holds one request's tokens in this forward pass, or some of
them when the mix changes inside a prompt. When decoding, segments have one token.
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
    """The slots that any token of the batch uses, ascending, without duplicates."""
    return tuple(sorted({slot for segment in segments for slot, _ in segment.parts}))
