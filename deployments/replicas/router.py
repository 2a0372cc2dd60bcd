"""The CPU pool of routers: text to probabilities, in batches. Holds the routers of the banks in use."""

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
"""Bank versions whose router stays in memory: the current one, and those of requests in progress."""


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
        """Load the router of a bank version. Raises StoreUnavailable or BankError."""
        await self._routers.get(bank)

    async def route(
        self,
        texts: Sequence[str],
        bank: str,
        allowed: frozenset[str] | None,
        trace: tracing.Carrier | None = None,
    ) -> Routing:
        """The bank's routing of the first of `texts` that fits one of the allowed adapters."""
        with tracing.span("route", trace):
            router = restricted(await self._routers.get(bank), allowed)
            routing: Routing = await self._batched(router, texts)
        return routing

    async def explain(self, texts: Sequence[str], bank: str, allowed: frozenset[str] | None) -> Explanation:
        """Explain the routing that `route` returns for the same arguments."""
        router = restricted(await self._routers.get(bank), allowed)
        with self._busy.measured():
            return await asyncio.to_thread(explain_first, router, texts)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load, for the policies in deployments/fleet/autoscaling.py."""
        busy = self._busy.share()
        self._metrics.state(busy=busy)
        return {BUSY: busy}

    # A batch is never held back to fill up: it takes whatever arrived while the last one ran.
    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _batched(self, routers: list[BankRouter], requests: list[Sequence[str]]) -> list[Routing]:
        with self._busy.measured():
            return await asyncio.to_thread(_route, routers, requests)

    def _load(self, bank: str) -> BankRouter:
        return read_router(self._store, self._cache, load_manifest(self._store, bank))


def _route(routers: list[BankRouter], requests: list[Sequence[str]]) -> list[Routing]:
    """Route a batch. It spans several routers if callers may use different adapters, or while the bank changes."""
    routings: dict[int, Routing] = {}
    for router in set(routers):
        rows = [row for row, row_router in enumerate(routers) if row_router is router]
        routings.update(zip(rows, router.route_first([requests[row] for row in rows]), strict=True))
    return [routings[row] for row in range(len(requests))]
