"""Which adapter is in which slot: pins, eviction and the order of waiting requests. No torch, no I/O, no threads.

A request asks for a set of adapters and gets a `Claim`. A claim is granted once every adapter of the set has a slot,
all at once, so that no request holds some slots while it waits for others. The slots of a granted claim are pinned
until it is released. Claims that do not fit wait in line. A later claim never overtakes a waiting one, so none starves:
every claim ahead of it is released eventually.

The caller (movement.py) starts the loads that these methods return and reports their outcome. An adapter is loaded
once, however many claims need it. The least recently used unpinned adapters are evicted first, as many as necessary:
slots are bounded in number and, if a limit is given, in bytes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from dlp_core.errors import InvalidRequest


class SlotState(Enum):
    LOADING = "loading"
    READY = "ready"


@dataclass(slots=True, eq=False)
class _Slot:
    index: int
    key: Hashable
    size: int
    state: SlotState = SlotState.LOADING
    pins: int = 0
    last_used: int = 0


@dataclass(slots=True, eq=False)
class Claim:
    """A request's claim on a set of adapters. Filled by `Slots`; read by its holder."""

    sizes: Mapping[Hashable, int]
    """Bytes of each adapter of the set."""
    granted: bool = False
    _held: list[_Slot] = field(default_factory=list)

    @property
    def keys(self) -> tuple[Hashable, ...]:
        return tuple(self.sizes)

    @property
    def slots(self) -> dict[Hashable, int]:
        """Key to slot, once granted."""
        return {slot.key: slot.index for slot in self._held}


@dataclass(frozen=True, slots=True)
class Load:
    """A load the caller must start: put `key` into `slot`, whose previous adapter is gone."""

    slot: int
    key: Hashable


class Slots:
    """Bookkeeping of `count` slots that together hold at most `max_bytes`; None sets no limit."""

    def __init__(self, count: int, max_bytes: int | None = None) -> None:
        self._count = count
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._emptied: list[int] = []
        self._by_key: dict[Hashable, _Slot] = {}
        self._free = deque(range(count))
        self._waiting: deque[Claim] = deque()
        self._clock = 0

    def request(self, sizes: Mapping[Hashable, int]) -> tuple[Claim, list[Load]]:
        """Claim a set of adapters; `sizes` maps each to its bytes. Returns the claim and the loads to start now.

        Raises InvalidRequest if the set is larger than all slots together.
        """
        claim = Claim(dict(sizes))
        if len(claim.keys) > self._count:
            raise InvalidRequest(
                f"the mix has {len(claim.keys)} adapters, but this server holds {self._count} at once; "
                "use fewer adapters or raise engine.slots",
                param="dlp.adapters",
            )
        if sum(claim.sizes.values()) > self._max_bytes:
            raise InvalidRequest(
                f"the mix has {sum(claim.sizes.values())} bytes of adapters, but this server holds {self._max_bytes} "
                "at once; use fewer adapters or raise engine.slot_bytes",
                param="dlp.adapters",
            )
        self._waiting.append(claim)
        return claim, self._grant()

    def release(self, claim: Claim) -> list[Load]:
        """Unpin a granted claim, or take a waiting one out of the line. Returns loads to start now."""
        if claim.granted:
            claim.granted = False
            while claim._held:
                claim._held.pop().pins -= 1
        elif claim in self._waiting:
            self._waiting.remove(claim)
        return self._grant()

    def loaded(self, key: Hashable) -> list[Load]:
        """Report that the load of `key` is done. Returns loads to start now: if no claim holds it any more, its slot is
        available again."""
        self._by_key[key].state = SlotState.READY
        return self._grant()

    def failed(self, key: Hashable) -> list[Load]:
        """Report that the load of `key` failed: its slot is free, and the claims on it must be released. Returns loads
        to start now."""
        slot = self._by_key.pop(key)
        self._free.append(slot.index)
        return self._grant()

    def can_hold(self, sizes: Mapping[Hashable, int]) -> bool:
        """Whether adapters of these sizes can ever be in slots together. Safe on any thread."""
        return len(sizes) <= self._count and sum(sizes.values()) <= self._max_bytes

    def emptied(self) -> list[int]:
        """Slots that were emptied by evictions since the last call and are still empty."""
        indices = [index for index in self._emptied if index in self._free]
        self._emptied.clear()
        return indices

    def state(self, key: Hashable) -> SlotState | None:
        """The state of `key`, or None if it has no slot."""
        slot = self._by_key.get(key)
        return None if slot is None else slot.state

    @property
    def ready(self) -> list[Hashable]:
        """Keys of loaded adapters, in no particular order."""
        return [key for key, slot in self._by_key.items() if slot.state is SlotState.READY]

    @property
    def pinned(self) -> int:
        """Pins over all slots; 0 when nothing is in flight."""
        return sum(slot.pins for slot in self._by_key.values())

    @property
    def waiting(self) -> int:
        """Claims waiting in line."""
        return len(self._waiting)

    def demand(self, excluding: Collection[Hashable] = ()) -> float:
        """Adapters of granted and waiting claims, each counted once, divided by capacity: in slots or bytes, whichever
        is scarcer. Above 1, some claims wait for others. The adapters in `excluding` count on neither side."""
        sizes = {slot.key: slot.size for slot in self._by_key.values() if slot.pins}
        for claim in self._waiting:
            sizes.update(claim.sizes)
        excluded = [sizes.pop(key) for key in excluding if key in sizes]
        slot_demand = len(sizes) / max(1, self._count - len(excluded))
        return max(slot_demand, sum(sizes.values()) / max(1, self._max_bytes - sum(excluded)))

    def _grant(self) -> list[Load]:
        loads: list[Load] = []
        while self._waiting and self._fits(self._waiting[0]):
            claim = self._waiting.popleft()
            claim.granted = True
            absent = [key for key in claim.keys if key not in self._by_key]
            for key in claim.keys:
                if key in self._by_key:  # pin these first, so that taking a slot cannot evict one of the set
                    self._pin(self._by_key[key], claim)
            for key in absent:
                slot = self._by_key[key] = _Slot(self._take(claim.sizes[key]), key, claim.sizes[key])
                self._pin(slot, claim)
                loads.append(Load(slot.index, key))
        return loads

    def _fits(self, claim: Claim) -> bool:
        remaining = [slot for slot in self._by_key.values() if slot.key in claim.sizes or not self._evictable(slot)]
        absent = [size for key, size in claim.sizes.items() if key not in self._by_key]
        fits = sum(slot.size for slot in remaining) + sum(absent) <= self._max_bytes
        return fits and len(remaining) + len(absent) <= self._count

    def _pin(self, slot: _Slot, claim: Claim) -> None:
        self._clock += 1
        slot.pins += 1
        slot.last_used = self._clock
        claim._held.append(slot)

    def _take(self, size: int) -> int:
        while not self._free or sum(slot.size for slot in self._by_key.values()) + size > self._max_bytes:
            victim = min((s for s in self._by_key.values() if self._evictable(s)), key=lambda s: s.last_used)
            del self._by_key[victim.key]
            self._free.appendleft(victim.index)
            self._emptied.append(victim.index)
        return self._free.popleft()

    @staticmethod
    def _evictable(slot: _Slot) -> bool:
        return slot.pins == 0 and slot.state is SlotState.READY
