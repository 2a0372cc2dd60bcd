"""The CPU pool that routes: text to probabilities, in batches. Holds the routers of the banks in use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ray import serve

from deployments.args import AppArgs
from deployments.fleet.autoscaling import BUSY
from deployments.observe import tracing
from deployments.observe.metrics import RouterMetrics
from deployments.replicas.busy import BusyTime
from deployments.replicas.process import join_library_log
from deployments.replicas.single_flight import SingleFlight
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.source import read_router
from dlp_core.router import Router as BankRouter
from dlp_core.router import Routing, restricted
from dlp_core.router.explanation import Explanation, explain_first
from dlp_core.store.opening import open_store

MAX_BATCH = 64
BANKS_KEPT = 4
"""Bank versions whose router stays in memory: the one in use, and those that requests under way began with."""


class Router:
    def __init__(self, args: AppArgs) -> None:
        tracing.start()
        join_library_log()
        self._store = open_store(args.bank)
        self._cache = DiskCache(args.cache.path, args.cache.max_bytes)
        self._routers = SingleFlight(self._load, keep=BANKS_KEPT)
        self._busy = BusyTime()
        self._metrics = RouterMetrics()

    async def prepare(self, bank: str) -> None:
        """Loads the router of a bank version. Raises StoreUnavailable or BankError."""
        await self._routers.get(bank)

    async def route(
        self,
        texts: Sequence[str],
        bank: str,
        allowed: frozenset[str] | None,
        trace: tracing.Carrier | None = None,
    ) -> Routing:
        """What the router of a bank version makes of the first of `texts` that fits one of the allowed adapters."""
        with tracing.span("route", trace):
            router = restricted(await self._routers.get(bank), allowed)
            routing: Routing = await self._batched(router, texts)
        return routing

    async def explain(self, texts: Sequence[str], bank: str, allowed: frozenset[str] | None) -> Explanation:
        """Why `route` says what it says."""
        router = restricted(await self._routers.get(bank), allowed)
        with self._busy.measured():
            return await asyncio.to_thread(explain_first, router, texts)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What deployments/fleet/autoscaling.py decides by."""
        busy = self._busy.share()
        self._metrics.state(busy=busy)
        return {BUSY: busy}

    # Nobody waits for a batch to fill: whatever arrived while the last one ran is the next one.
    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _batched(self, routers: list[BankRouter], requests: list[Sequence[str]]) -> list[Routing]:
        with self._busy.measured():
            return await asyncio.to_thread(_route, routers, requests)

    def _load(self, bank: str) -> BankRouter:
        return read_router(self._store, self._cache, load_manifest(self._store, bank))


def _route(routers: list[BankRouter], requests: list[Sequence[str]]) -> list[Routing]:
    """A batch spans several routers where requests may use other adapters, and while a bank takes over from another."""
    found: dict[int, Routing] = {}
    for router in set(routers):
        rows = [row for row, its_router in enumerate(routers) if its_router is router]
        found.update(zip(rows, router.route_first([requests[row] for row in rows]), strict=True))
    return [found[row] for row in range(len(requests))]
