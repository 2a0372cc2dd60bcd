"""The CPU pool that routes: text to probabilities, in batches. Holds the routers of the banks in use."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray import serve

from deployments.args import AppArgs
from deployments.fleet.autoscaling import BUSY
from deployments.observe import tracing
from deployments.observe.metrics import RouterMetrics
from deployments.replicas.banks import BANKS_KEPT, LoadedBanks
from deployments.replicas.process import join_library_log
from dlp_core.router import Passage, Routing, restricted
from dlp_core.router import Router as BankRouter
from dlp_core.router.drift import DriftWindow, expected
from dlp_core.router.explanation import Explanation, explain_first
from dlp_core.router.passages import passages_first
from dlp_core.store.opening import open_store

MAX_BATCH = 64


class Router:
    def __init__(self, args: AppArgs) -> None:
        tracing.start()
        join_library_log()
        self._banks = LoadedBanks(open_store(args.bank), args.cache.open())
        self._busy = BusyTime()
        self._drift = Drift()
        self._metrics = RouterMetrics()

    async def prepare(self, bank: str) -> None:
        """Loads the router of a bank version. Raises StoreUnavailable or BankError."""
        await self._banks.router(bank)

    async def route(
        self,
        texts: Sequence[str],
        bank: str,
        allowed: frozenset[str] | None,
        trace: tracing.Carrier | None = None,
    ) -> Routing:
        """What the router of a bank version makes of the first of `texts` that fits one of the allowed adapters."""
        with tracing.span("route", trace):
            whole = await self._banks.router(bank)
            router = restricted(whole, allowed)
            routing: Routing = await self._batched(router, texts)
            if router is whole:  # of one that may use few adapters, less fits
                self._drift.add(bank, whole, routing)
        return routing

    async def explain(self, texts: Sequence[str], bank: str, allowed: frozenset[str] | None) -> Explanation:
        """Why `route` says what it says."""
        router = restricted(await self._banks.router(bank), allowed)
        with self._busy.measured():
            return await asyncio.to_thread(explain_first, router, texts)

    async def divide(self, texts: Sequence[str], bank: str, allowed: frozenset[str] | None) -> list[Passage]:
        """The passages of a request (dlp_core/router/passages.py), as a backbone replica divides it."""
        router = restricted(await self._banks.router(bank), allowed)
        with self._busy.measured():
            return await asyncio.to_thread(passages_first, router, texts)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What deployments/fleet/autoscaling.py decides by."""
        busy = self._busy.share()
        self._metrics.state(busy=busy, drift=self._drift.state())
        return {BUSY: busy}

    # Nobody waits for a batch to fill: whatever arrived while the last one ran is the next one.
    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _batched(self, routers: list[BankRouter], requests: list[Sequence[str]]) -> list[Routing]:
        with self._busy.measured():
            return await asyncio.to_thread(_route, routers, requests)


def _route(routers: list[BankRouter], requests: list[Sequence[str]]) -> list[Routing]:
    """A batch spans several routers where requests may use other adapters, and while a bank takes over from another."""
    routings: dict[int, Routing] = {}
    for router in set(routers):
        rows = [row for row, its_router in enumerate(routers) if its_router is router]
        routings.update(zip(rows, router.route_first([requests[row] for row in rows]), strict=True))
    return [routings[row] for row in range(len(requests))]


class Drift:
    """The prompts of the last day, by bank version. Use from one event loop."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, DriftWindow] = OrderedDict()

    def add(self, bank: str, router: BankRouter, routing: Routing) -> None:
        if bank not in self._windows:
            self._windows[bank] = DriftWindow(expected(router))
        self._windows[bank].add(routing, now=time.time())
        self._windows.move_to_end(bank)
        while len(self._windows) > BANKS_KEPT:
            self._windows.popitem(last=False)

    def state(self) -> dict[str, float]:
        """The drift by adapter (dlp_core/router/drift.py) under the bank that most prompts had."""
        busiest = max(self._windows.values(), key=lambda window: window.prompts, default=None)
        return {} if busiest is None else busiest.drift(now=time.time())


class BusyTime:
    """Adds up the seconds inside `measured`; work side by side counts twice. Use from one event loop."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._asked = time.perf_counter()

    @contextmanager
    def measured(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - began

    def share(self) -> float:
        """Of the time since this was last asked. What is still under way counts when it ends."""
        now = time.perf_counter()
        share = self._seconds / max(now - self._asked, 1e-9)
        self._seconds, self._asked = 0.0, now
        return share
