"""The banks a replica has loaded: manifests and routers by version, each read once however many requests ask for it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.source import read_router
from dlp_core.router import Router
from dlp_core.store.protocol import AdapterStore

Value = TypeVar("Value")

BANKS_KEPT = 6
"""Bank versions that stay in memory: the one that serves, its canary and shadow, and those that requests under way
began with."""


class LoadedBanks:
    """Banks of one store, routers through the disk cache. What cannot be read is tried again when it is asked for.

    Use from one event loop.
    """

    def __init__(
        self, store: AdapterStore, cache: DiskCache, *, admit: Callable[[BankManifest], None] = lambda manifest: None
    ) -> None:
        """`admit` is called with each manifest that was read, on a thread; what it raises refuses the bank."""
        self._store = store
        self._cache = cache
        self._admit = admit
        self._manifests = SingleFlight(self._read_manifest, keep=BANKS_KEPT)
        self._routers = SingleFlight(self._read_router, keep=BANKS_KEPT)

    async def manifest(self, version: str) -> BankManifest:
        """Raises UnknownModel, BankError, StoreUnavailable, or what refuses the bank."""
        return await self._manifests.get(version)

    async def router(self, version: str) -> Router:
        """Raises what `manifest` and dlp_core.bank.source.read_router raise."""
        return await self._routers.get(version)

    async def _read_manifest(self, version: str) -> BankManifest:
        def read() -> BankManifest:
            manifest = load_manifest(self._store, version)
            self._admit(manifest)
            return manifest

        return await asyncio.to_thread(read)

    async def _read_router(self, version: str) -> Router:
        return await asyncio.to_thread(read_router, self._store, self._cache, await self.manifest(version))


class SingleFlight(Generic[Value]):
    """Values by key, the last `keep` of them kept. Those who ask while one is computed wait for it together; a failure
    goes to all of them and is not kept.

    Use from one event loop.
    """

    def __init__(self, compute: Callable[[str], Coroutine[Any, Any, Value]], *, keep: int) -> None:
        self._compute = compute
        self._keep = keep
        self._tasks: OrderedDict[str, asyncio.Task[Value]] = OrderedDict()

    async def get(self, key: str) -> Value:
        """The value of `key`. One waiter that is cancelled does not disturb the others."""
        if key not in self._tasks:
            task = asyncio.create_task(self._compute(key))
            task.add_done_callback(lambda done: self._forget_failure(key, done))
            self._tasks[key] = task
            while len(self._tasks) > self._keep:
                self._tasks.popitem(last=False)
        self._tasks.move_to_end(key)
        return await asyncio.shield(self._tasks[key])

    def _forget_failure(self, key: str, task: asyncio.Task[Value]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._tasks.get(key) is task:
            del self._tasks[key]
