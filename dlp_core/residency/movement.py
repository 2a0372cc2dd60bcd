"""Brings the adapters of a mix onto the device and keeps them there while a request uses them.

    async with residency.pinned(mix.names) as pins:     # name -> Pin
        ...

The source (a bank in a store behind a disk cache, or local folders) is read on a worker thread, once per adapter,
however many requests wait for it. Cancelling one waiter does not affect the others. A failed load raises in every
request that waits for it and leaves the slot free. `Slots` decides; this file only moves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from dlp_core.adapter.weights import Adapter
from dlp_core.errors import AdapterUnavailable, DLPError, InvalidRequest
from dlp_core.fusion.packed import Packed
from dlp_core.residency.host_memory import HostMemory
from dlp_core.residency.slots import Claim, Load, Slots

if TYPE_CHECKING:
    from dlp_core.adapter.invocation import Invocation
    from dlp_core.residency.sources import AdapterSource

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pin:
    """The slot and the digest of a pinned adapter."""

    slot: int
    digest: str


class _Key(NamedTuple):
    """An adapter's identity in the slots: the same name with other bytes is another adapter."""

    name: str
    digest: str


class Device(Protocol):
    """Where adapters are put: slots that a model reads. A model's fusion, or one in another process."""

    def pack(self, adapter: Adapter) -> Packed:
        """Check an adapter and pack it in host memory. On any thread. Raises AdapterRefused."""

    def place(self, slot: int, packed: Packed) -> int:
        """Put it into a slot, replacing its content; returns its bytes there. On any thread, not the event loop's."""

    def unload(self, slot: int) -> None:
        """Empty a slot. On the event loop."""


class _Waiter(NamedTuple):
    """A request that waits for its adapters, and the context in which they are loaded."""

    granted: asyncio.Event
    context: Context


_CHANGED_RETRY_S = 1.0

_LOAD_THREADS = 4
"""Concurrent loads: enough to hide the store's latency, few enough to leave the cores to the model."""


class Residency:
    """Adapters of one source in the slots of one model. For use on one event loop."""

    def __init__(
        self,
        source: AdapterSource,
        device: Device,
        slots: int,
        *,
        slot_bytes: int | None = None,
        host_bytes: int = 2**30,
        on_load: Callable[[str, str, float], None] | None = None,
    ) -> None:
        """At most `slots` adapters and `slot_bytes` bytes of them, as stored, are on the device at once; at most
        `host_bytes` are kept packed in host memory. `on_load(name, tier, seconds)` is called after each load: with
        "host", on a load thread, for the part from the source to host memory, if that was necessary, and with "device"
        for the whole load. Like `source.load`, it runs in the context (contextvars) of the request that the load was
        started for."""
        self._source = source
        self._device = device
        self._slots = Slots(slots, slot_bytes)
        self._host = HostMemory(host_bytes)
        self._on_load = on_load
        self._kept = AsyncExitStack()
        self._kept_names: tuple[str, ...] = ()
        self._loads: dict[_Key, asyncio.Task[None]] = {}
        self._waiters: dict[Claim, _Waiter] = {}
        self._waiting_since: dict[Claim, float] = {}
        self._threads = ThreadPoolExecutor(
            _LOAD_THREADS, thread_name_prefix="adapter-load", initializer=_lower_priority
        )

    @property
    def resident(self) -> list[str]:
        """Names of loaded adapters, sorted."""
        return sorted({key.name for key in self._keys()})

    @property
    def pinned_count(self) -> int:
        """Pins held by requests; 0 when nothing is in flight."""
        return self._slots.pinned

    @property
    def demand(self) -> float:
        """Adapters that requests use or wait for, divided by the slots for them. Kept ones count on neither side."""
        return self._slots.demand(excluding=[key for key in self._keys() if key.name in self._kept_names])

    @property
    def max_wait_s(self) -> float:
        """Seconds that the request waiting longest for its adapters has waited so far."""
        return max((time.perf_counter() - since for since in self._waiting_since.values()), default=0.0)

    def can_hold(self, names: Sequence[str]) -> bool:
        """Whether these adapters can ever be resident together, besides the kept ones. Safe on any thread.

        Raises UnknownModel.
        """
        return self._slots.can_hold({name: self._source.size(name) for name in (*names, *self._kept_names)})

    def invocation(self, name: str) -> Invocation | None:
        """That of an activated adapter, None for an ordinary one. Safe on any thread. Raises UnknownModel."""
        return self._source.invocation(name)

    @asynccontextmanager
    async def pinned(self, names: Sequence[str]) -> AsyncIterator[dict[str, Pin]]:
        """Wait until all `names` are resident, and keep them so inside the block. Yields name -> Pin.

        Raises UnknownModel, AdapterRefused, AdapterUnavailable, or InvalidRequest if there are more names than
        slots.
        """
        keys = [_Key(name, self._source.digest(name)) for name in names]
        if self._kept_names and not self.can_hold(names):
            raise InvalidRequest(
                f"the mix has {len(names)} adapters, which do not fit beside the {len(self._kept_names)} that this "
                "server always keeps; use fewer adapters, raise engine.slots or keep fewer",
                param="dlp.adapters",
            )
        claim, loads = self._slots.request({key: self._source.size(key.name) for key in keys})
        self._waiters[claim] = waiter = _Waiter(asyncio.Event(), copy_context())
        self._waiting_since[claim] = time.perf_counter()
        self._advance(loads)
        try:
            await waiter.granted.wait()
            for key in keys:
                if key in self._loads:
                    await asyncio.shield(self._loads[key])
            del self._waiting_since[claim]
            yield {key.name: Pin(claim.slots[key], key.digest) for key in keys}
        finally:
            del self._waiters[claim]
            self._waiting_since.pop(claim, None)
            self._advance(self._slots.release(claim))

    async def keep(self, names: Sequence[str]) -> None:
        """Load these adapters and keep them resident, replacing those kept before. Raises what `pinned` raises, and
        then still keeps the previous ones."""
        previous, self._kept_names = self._kept_names, ()
        await self._kept.aclose()  # old and new together might not fit
        try:
            await self._kept.enter_async_context(self.pinned(names))
        except BaseException:
            await self._kept.enter_async_context(self.pinned(previous))
            self._kept_names = previous
            raise
        self._kept_names = tuple(names)

    async def preload(self, names: Sequence[str]) -> None:
        """Load these adapters together; they may be evicted like any other. Raises what `pinned` raises."""
        async with self.pinned(names):
            pass

    @property
    def host_count(self) -> int:
        """Adapters in host memory."""
        return len(self._host)

    def close(self) -> None:
        """Stop the load threads once the running loads have finished."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _keys(self) -> list[_Key]:
        return [key for key in self._slots.ready if isinstance(key, _Key)]

    def _advance(self, loads: Sequence[Load]) -> None:
        """Start the loads that `Slots` returned and wake the requests whose claims it granted."""
        for slot in self._slots.emptied():
            self._device.unload(slot)
        for load in loads:
            assert isinstance(load.key, _Key)
            work = self._load(load.key, load.slot)
            task = asyncio.create_task(work, name=f"load {load.key.name}", context=self._context_of(load))
            task.add_done_callback(_mark_exception_retrieved)
            self._loads[load.key] = task
        for claim, waiter in self._waiters.items():
            if claim.granted:
                waiter.granted.set()

    def _context_of(self, load: Load) -> Context:
        """The context of the request that `load` is for, even if another one triggered it by releasing a slot."""
        return next(w.context for claim, w in self._waiters.items() if claim.granted and load.key in claim.sizes)

    async def _load(self, key: _Key, slot: int) -> None:
        began = time.perf_counter()
        try:
            run = copy_context().run  # its own copy: another adapter of the mix may be loading
            await asyncio.get_running_loop().run_in_executor(self._threads, run, self._load_blocking, key, slot)
        except Exception as error:
            del self._loads[key]
            self._advance(self._slots.failed(key))
            if isinstance(error, DLPError):
                log.error("adapter %s was not loaded: %s", key.name, error.message)
                raise
            log.exception("adapter %s was not loaded", key.name)
            raise AdapterUnavailable(
                f"adapter {key.name!r} could not be loaded ({error}); the replica's log has the cause"
            ) from error
        del self._loads[key]
        self._advance(self._slots.loaded(key))
        seconds = time.perf_counter() - began
        log.info("adapter %s is in slot %d after %.3f s", key.name, slot, seconds)
        if self._on_load is not None:
            self._on_load(key.name, "device", seconds)

    def _load_blocking(self, key: _Key, slot: int) -> None:
        packed = self._host.get(key)
        if packed is None:
            began = time.perf_counter()
            packed = self._device.pack(self._read(key))
            self._host.put(key, packed)
            if self._on_load is not None:
                self._on_load(key.name, "host", time.perf_counter() - began)
        self._device.place(slot, packed)

    def _read(self, key: _Key) -> Adapter:
        """The adapter from the source, and no other that has its name by now: cached blocks go by the digest."""
        adapter = self._source.load(key.name)
        if adapter.files and not key.digest.startswith(_digest_of(adapter)):
            raise AdapterUnavailable(
                f"adapter {key.name!r} was changed while it was loaded; try again", retry_after=_CHANGED_RETRY_S
            )
        return adapter


def _mark_exception_retrieved(task: asyncio.Task[None]) -> None:
    """Keep asyncio from warning about a load's error: waiting requests get it, and there may be none left."""
    if not task.cancelled():
        task.exception()


def _lower_priority() -> None:
    """Give a load thread one torch thread and a low priority, so that the running batch hardly notices it.

    More torch threads would compete with the model's for the same cores, and the model's threads wait for each other:
    all of them stall while one is kept from its core.
    """
    torch.set_num_threads(1)
    if hasattr(os, "setpriority"):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)  # Linux: applies to this thread only


def _digest_of(adapter: Adapter) -> str:
    from dlp_core.store.files import digest_of  # and pydantic, which nothing else here needs

    return digest_of(adapter.files)
