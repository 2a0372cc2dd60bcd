"""Which tokens of a request run under which mix. Positions count prompt and completion together.

A token "runs under" the mix of its own forward pass: the pass that stores its keys and values and predicts the token
after it. The mix of a computed position never changes; that of later ones may.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from dlp_core.engine.request import Plan
from dlp_core.fusion.segments import Segment
from dlp_core.mix import Mix, Span
from dlp_core.residency.movement import Pin

_KEY = os.urandom(16)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A span and the slots of its adapters."""

    start: int
    mix: Mix
    parts: tuple[tuple[int, float], ...]
    identity: bytes
    """What keys and values depend on besides the tokens: the adapters' bytes and weights, in any order. And the salt of
    those that may share them."""


class Timeline:
    """A request's plan as it is executed, with the slots of its adapters.

    Changed on the generation thread only; `spans` may be called on any.
    """

    def __init__(self, plan: Plan, pins: Mapping[str, Pin]) -> None:
        self._pins = pins
        self._salt = plan.salt
        self._entries = tuple(self._entry(start, mix) for start, mix in plan.spans)
        self._salted_ids: list[int] = []

    def update_pins(self, pins: Mapping[str, Pin]) -> None:
        """Record where the adapters are now. `pins` has those of all spans, and may have more."""
        self._pins = pins
        self._entries = tuple(self._entry(entry.start, entry.mix) for entry in self._entries)

    def change(self, position: int, mix: Mix) -> None:
        """Run tokens from `position` on under `mix`. They must not have run yet."""
        if mix != self._entries[-1].mix:
            kept = tuple(entry for entry in self._entries if entry.start < position)
            self._entries = (*kept, self._entry(position, mix))
            del self._salted_ids[position:]

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters of all spans so far, without duplicates: those needed to recompute the request."""
        return tuple(dict.fromkeys(name for entry in self._entries for name in entry.mix.names))

    def has_pinned(self, mix: Mix) -> bool:
        """Whether all adapters of `mix` are pinned."""
        return all(name in self._pins for name in mix.names)

    def segments(self, start: int, length: int) -> list[Segment]:
        """The segments of `length` tokens from `start` on."""
        segments = []
        end = start + length
        for entry, entry_end in zip(self._entries, (*(e.start for e in self._entries[1:]), end), strict=True):
            stop = min(end, entry_end)
            if stop > start:
                segments.append(Segment(stop - start, entry.parts))
                start = stop
        return segments

    def spans(self, tokens: int) -> tuple[Span, ...]:
        """The mixes of the first `tokens` tokens."""
        entries = [entry for entry in self._entries if entry.start < tokens]
        ends = [*(entry.start for entry in entries[1:]), tokens]
        return tuple(Span(entry.start, end, entry.mix) for entry, end in zip(entries, ends, strict=True))

    def salted_ids(self, token_ids: list[int]) -> list[int]:
        """Map each token to a number that is equal only for the same token under the same mix of the same adapters.

        Keys and values depend on both, so cache blocks may be shared by these numbers, but never by token ids. They
        have 32 bits and a key that is new in every process; the cache hashes a block of them to 64 bits.
        """
        for position in range(len(self._salted_ids), len(token_ids)):
            entry = self._entries[bisect_right(self._entries, position, key=lambda entry: entry.start) - 1]
            token = token_ids[position].to_bytes(4, "little")
            digest = hashlib.blake2b(token + entry.identity, digest_size=4, key=_KEY).digest()
            self._salted_ids.append(int.from_bytes(digest, "little", signed=True))
        return self._salted_ids[: len(token_ids)]

    def _entry(self, start: int, mix: Mix) -> _Entry:
        pinned = [(self._pins[part.name], part.weight) for part in mix.adapters]
        return _Entry(
            start,
            mix,
            parts=tuple((pin.slot, weight) for pin, weight in pinned),
            identity=repr((self._salt, sorted((pin.digest, weight) for pin, weight in pinned))).encode(),
        )
