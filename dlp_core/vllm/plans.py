"""A request's mixes as they travel to vLLM: by value, in its sampling parameters. No vLLM and no torch here.

    extra_args = {"dlp": [[start, [[slot, weight], ...], identity], ...]}

`start` is a position in prompt and completion together, ascending from 0. `identity` is what keys and values depend on
besides the tokens: digests and weights, never slots, which are reused. It is empty for the plain backbone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from dlp_core.fusion.segments import Segment
from dlp_core.mix import Mix

if TYPE_CHECKING:
    from dlp_core.residency.movement import Pin

KEY = "dlp"

Wire: TypeAlias = list[list[Any]]
"""Spans as they travel: JSON, msgpack and pickle leave them as they are."""

_END = 1 << 62


def to_wire(spans: Sequence[tuple[int, Mix]], pins: Mapping[str, Pin]) -> Wire:
    """The spans of a plan, with the slots and digests of their adapters."""
    return [
        [
            start,
            [[pins[part.name].slot, part.weight] for part in mix.adapters],
            _identity([(pins[part.name].digest, part.weight) for part in mix.adapters]),
        ]
        for start, mix in spans
    ]


def salt_of(wire: Wire, tenant: str, *, by_block: bool) -> str:
    """The cache salt of a request. It is always sent: without it, vLLM shares blocks by their tokens alone.

    `by_block` says that the engine keys blocks by the mixes in them (`block_keys`). Then requests share what they have
    in common, within a `tenant`'s salt; otherwise only requests whose mixes are the same all along.
    """
    spans = [] if by_block else [[start, identity] for start, _, identity in wire]
    return hashlib.sha256(json.dumps([tenant, spans]).encode()).hexdigest()


def block_keys(wire: Wire, start: int, end: int) -> tuple[tuple[str, int, str], ...]:
    """What the block of positions `start` to `end` depends on besides its tokens: which mix from where in it, the plain
    backbone's too. Empty for a block of the plain backbone alone: everybody shares those."""
    keys: list[tuple[str, int, str]] = []
    for (first, _, identity), until in zip(wire, _untils(wire), strict=True):
        if first < end and until > start and (not keys or keys[-1][2] != identity):
            keys.append((KEY, max(first, start) - start, identity))
    return () if [identity for *_, identity in keys] == [""] else tuple(keys)


class Spans:
    """The spans of one request, in a worker."""

    __slots__ = ("_parts", "_starts")

    def __init__(self, wire: Wire) -> None:
        self._starts = [int(start) for start, _, _ in wire]
        self._parts = [tuple((int(slot), float(weight)) for slot, weight in parts) for _, parts, _ in wire]

    def segments(self, start: int, length: int) -> list[Segment]:
        """The segments of `length` tokens from position `start` on."""
        segments = []
        end = start + length
        for until, parts in zip((*self._starts[1:], _END), self._parts, strict=True):
            stop = min(end, until)
            if stop > start:
                segments.append(Segment(stop - start, parts))
                start = stop
        return segments


PLAIN = Spans([[0, [], ""]])


def _untils(wire: Wire) -> list[int]:
    return [*(after[0] for _, after in pairwise(wire)), _END]


def _identity(parts: Sequence[tuple[str, float]]) -> str:
    """The same for the same adapters and weights in any order."""
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest() if parts else ""
