"""Which tokens of a request run under which mix, in positions of prompt and completion together.

A token "runs under" the mix its own forward pass carries: the pass that stores its keys and values and predicts
the token after it. Positions that were computed never change their mix; what lies ahead may.
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
    """One span as it is carried out."""

    start: int
    mix: Mix
    parts: tuple[tuple[int, float], ...]
    identity: bytes
    """What keys and values depend on beside the tokens: the adapters' bytes and weights, in whatever order."""


class Timeline:
    """A plan as it is carried out, with the slots its adapters are in.

    Changed on the generation thread only; `spans` may be asked on any.
    """

    def __init__(self, plan: Plan, pins: Mapping[str, Pin]) -> None:
        self._pins = pins
        self._entries = tuple(self._entry(start, mix) for start, mix in plan.spans)
        self._salted: list[int] = []

    def place(self, pins: Mapping[str, Pin]) -> None:
        """Takes note of where the adapters are now: `pins` has those of all spans, and perhaps more."""
        self._pins = pins
        self._entries = tuple(self._entry(entry.start, entry.mix) for entry in self._entries)

    def change(self, position: int, mix: Mix) -> None:
        """Tokens from `position` on run under `mix`. They must not have run yet."""
        if mix != self._entries[-1].mix:
            kept = tuple(entry for entry in self._entries if entry.start < position)
            self._entries = (*kept, self._entry(position, mix))
            del self._salted[position:]

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters of all spans so far, each once: what it takes to compute the request again."""
        return tuple(dict.fromkeys(name for entry in self._entries for name in entry.mix.names))

    def holds(self, mix: Mix) -> bool:
        """Whether the adapters of `mix` are among the pinned ones."""
        return all(name in self._pins for name in mix.names)

    def segments(self, start: int, length: int) -> list[Segment]:
        """The mixes of `length` tokens from `start` on."""
        found = []
        end = start + length
        for entry, until in zip(self._entries, (*(e.start for e in self._entries[1:]), end), strict=True):
            stop = min(end, until)
            if stop > start:
                found.append(Segment(stop - start, entry.parts))
                start = stop
        return found

    def spans(self, tokens: int) -> tuple[Span, ...]:
        """What the first `tokens` tokens ran under."""
        entries = [entry for entry in self._entries if entry.start < tokens]
        ends = [*(entry.start for entry in entries[1:]), tokens]
        return tuple(Span(entry.start, end, entry.mix) for entry, end in zip(entries, ends, strict=True))

    def salted(self, token_ids: list[int]) -> list[int]:
        """A number for each token that is equal only for the same token under the same mix of the same adapters.

        Keys and values depend on both, so blocks of the cache may be shared by these numbers and never by token ids.
        32 bits each, keyed anew in every process; the cache hashes a block of them to 64 bits.
        """
        for position in range(len(self._salted), len(token_ids)):
            entry = self._entries[bisect_right(self._entries, position, key=lambda entry: entry.start) - 1]
            token = token_ids[position].to_bytes(4, "little")
            digest = hashlib.blake2b(token + entry.identity, digest_size=4, key=_KEY).digest()
            self._salted.append(int.from_bytes(digest, "little", signed=True))
        return self._salted[: len(token_ids)]

    def _entry(self, start: int, mix: Mix) -> _Entry:
        pinned = [(self._pins[part.name], part.weight) for part in mix.adapters]
        return _Entry(
            start,
            mix,
            parts=tuple((pin.slot, weight) for pin, weight in pinned),
            identity=repr(sorted((pin.digest, weight) for pin, weight in pinned)).encode(),
        )
