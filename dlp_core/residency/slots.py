"""Which adapter is in which slot: pins, eviction and the order of waiting requests. No torch, no I/O, no threads.

A request asks for a set of adapters and gets a `Ticket`. The ticket is granted when every adapter of the set
has a slot, all at once, so that no request holds some slots while it waits for others. Slots of granted
tickets are pinned until the ticket is released. Tickets that need a slot none is free for wait in line; a
later ticket never overtakes a waiting one, so nobody starves: everybody ahead finishes and unpins.

Whoever drives this (residency.py) starts the loads it is told to start and reports them back. An adapter is
loaded once however many tickets want it. The least recently used unpinned adapters are evicted first, as many
as it takes: slots are bounded by their number and, where a limit is given, by the bytes of what is in them.
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
class Ticket:
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
    """A load the driver must start: put `key` into `slot`, whose former adapter is gone."""

    slot: int
    key: Hashable


class Slots:
    """Bookkeeping of `count` slots that hold at most `max_bytes` together; None sets no limit."""

    def __init__(self, count: int, max_bytes: int | None = None) -> None:
        self._count = count
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._emptied: list[int] = []
        self._by_key: dict[Hashable, _Slot] = {}
        self._free = deque(range(count))
        self._waiting: deque[Ticket] = deque()
        self._clock = 0

    def request(self, sizes: Mapping[Hashable, int]) -> tuple[Ticket, list[Load]]:
        """Asks for the adapters that `sizes` maps to their bytes, together. Returns the ticket and the loads to start
        now.

        Raises InvalidRequest if the set is larger than all slots together.
        """
        ticket = Ticket(dict(sizes))
        if len(ticket.keys) > self._count:
            raise InvalidRequest(
                f"the mix has {len(ticket.keys)} adapters, this server holds {self._count} at once; "
                "use fewer adapters or raise engine.slots",
                param="dlp.adapters",
            )
        if sum(ticket.sizes.values()) > self._max_bytes:
            raise InvalidRequest(
                f"the mix has {sum(ticket.sizes.values())} bytes of adapters, this server holds {self._max_bytes} at "
                "once; use fewer adapters or raise engine.slot_bytes",
                param="dlp.adapters",
            )
        self._waiting.append(ticket)
        return ticket, self._grant()

    def release(self, ticket: Ticket) -> list[Load]:
        """Unpins a granted ticket, or takes a waiting one out of line. Returns loads that can start now."""
        if ticket.granted:
            ticket.granted = False
            while ticket._held:
                ticket._held.pop().pins -= 1
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        return self._grant()

    def loaded(self, key: Hashable) -> list[Load]:
        """The load of `key` is done. Returns loads that can start now: if nobody holds it any more, its slot can
        be taken again."""
        self._by_key[key].state = SlotState.READY
        return self._grant()

    def failed(self, key: Hashable) -> list[Load]:
        """The load of `key` failed: its slot is free for others, tickets that wait for it must be released.
        Returns loads that can start now."""
        slot = self._by_key.pop(key)
        self._free.append(slot.index)
        return self._grant()

    def could_hold(self, sizes: Mapping[Hashable, int]) -> bool:
        """Whether adapters of these bytes can ever be in slots together. Safe on any thread."""
        return len(sizes) <= self._count and sum(sizes.values()) <= self._max_bytes

    def emptied(self) -> list[int]:
        """Slots whose adapter was evicted since this was last asked, without another to take its place."""
        found = [index for index in self._emptied if index in self._free]
        self._emptied.clear()
        return found

    def state(self, key: Hashable) -> SlotState | None:
        """Where `key` stands, or None if it has no slot."""
        slot = self._by_key.get(key)
        return None if slot is None else slot.state

    @property
    def ready(self) -> list[Hashable]:
        """Keys that are loaded, in no particular order."""
        return [key for key, slot in self._by_key.items() if slot.state is SlotState.READY]

    @property
    def pinned(self) -> int:
        """Pins over all slots; 0 when nothing is in flight."""
        return sum(slot.pins for slot in self._by_key.values())

    @property
    def waiting(self) -> int:
        """Tickets in line for a slot."""
        return len(self._waiting)

    def demand(self, besides: Collection[Hashable] = ()) -> float:
        """What granted and waiting tickets ask for, each adapter once, over what there is: slots or bytes, whichever is
        scarcer. Above 1, some of them wait for others. The adapters `besides` count on neither side."""
        sizes = {slot.key: slot.size for slot in self._by_key.values() if slot.pins}
        for ticket in self._waiting:
            sizes.update(ticket.sizes)
        fixed = [sizes.pop(key) for key in besides if key in sizes]
        of_slots = len(sizes) / max(1, self._count - len(fixed))
        return max(of_slots, sum(sizes.values()) / max(1, self._max_bytes - sum(fixed)))

    def _grant(self) -> list[Load]:
        loads: list[Load] = []
        while self._waiting and self._fits(self._waiting[0]):
            ticket = self._waiting.popleft()
            ticket.granted = True
            absent = [key for key in ticket.keys if key not in self._by_key]
            for key in ticket.keys:
                if key in self._by_key:  # pinned first, so that taking a slot cannot evict one of the set
                    self._pin(self._by_key[key], ticket)
            for key in absent:
                slot = self._by_key[key] = _Slot(self._take(ticket.sizes[key]), key, ticket.sizes[key])
                self._pin(slot, ticket)
                loads.append(Load(slot.index, key))
        return loads

    def _fits(self, ticket: Ticket) -> bool:
        stays = [slot for slot in self._by_key.values() if slot.key in ticket.sizes or not self._evictable(slot)]
        absent = [size for key, size in ticket.sizes.items() if key not in self._by_key]
        fits = sum(slot.size for slot in stays) + sum(absent) <= self._max_bytes
        return fits and len(stays) + len(absent) <= self._count

    def _pin(self, slot: _Slot, ticket: Ticket) -> None:
        self._clock += 1
        slot.pins += 1
        slot.last_used = self._clock
        ticket._held.append(slot)

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
