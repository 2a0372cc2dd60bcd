"""The front of the application: the HTTP API over the router pool and the backbone replicas. Stateless, no torch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.args import AppArgs
from deployments.http.access import Access
from deployments.http.admin import LoadAdapter
from deployments.http.app import create_app
from deployments.observe import tracing
from deployments.observe.metrics import BankMetrics, RoutingMetrics
from deployments.replicas.errors import from_ray
from deployments.replicas.process import join_library_log
from dlp_core.bank.follower import BankFollower, Refusal
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import rollback
from dlp_core.bank.revision import without_adapter
from dlp_core.decision import Decision, RoutingOptions, decide
from dlp_core.errors import EngineFailed, RouterUnavailable
from dlp_core.generation.messages import Delta, Finished, GenerationRequest
from dlp_core.router import Routing
from dlp_core.router.explanation import Explanation
from dlp_core.store.opening import open_store

log = logging.getLogger("ray.serve")

PREPARE_S = 120.0
"""Longest wait for a replica to get ready for a bank; then the follower tries again."""

ATTEMPTS = 3
"""Replicas a request may be tried on, as long as nothing of an answer was sent."""


@serve.ingress()
class Ingress:
    def __init__(self, args: AppArgs, backbone: DeploymentHandle, router: DeploymentHandle) -> None:
        tracing.start()
        join_library_log()
        self._args = args
        self._backbone = backbone
        self._router = router
        self._metrics = RoutingMetrics()
        self._bank_metrics = BankMetrics()
        secrets = args.access
        self._access = Access(admin_token_file=secrets.admin_token_file, keys_file=secrets.keys_file)
        self._store = open_store(args.bank)
        self._bank = BankFollower(self._store, poll_s=args.bank_poll_s, prepare=self._prepare, looked=self._report_bank)
        self._following = asyncio.create_task(self._bank.follow())

    def __serve_build_asgi_app__(self) -> FastAPI:
        args = self._args
        return create_app(
            self, routing=args.routing, limits=args.limits, access=self._access, log=args.log, sets_id_header=False
        )

    def check_health(self) -> None:
        """Ray replaces the replica when the follower died of something nobody foresaw."""
        if self._following.done():
            self._following.result()

    async def ready(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PREPARE_S):
                await self._bank.settled.wait()

    def bank(self) -> BankManifest:
        return self._bank.bank()

    def refused(self) -> Refusal | None:
        return self._bank.refused

    def _report_bank(self) -> None:
        self._bank_metrics.looked(refused=self._bank.refused is not None)

    async def look(self) -> None:
        """Follows the pointer now instead of at the next poll. Raises why the bank it names cannot take over."""
        await self._bank.look()

    async def load_adapter(self, body: LoadAdapter) -> BankManifest:
        return await self._changed(self._backbone.load_adapter.remote(body))

    async def unload_adapter(self, name: str) -> BankManifest:
        return await self._changed(asyncio.to_thread(without_adapter, self._store, name))

    async def publish(self, folder: str, version: str | None) -> BankManifest:
        return await self._changed(self._backbone.publish.remote(folder, version))

    async def rollback(self, version: str | None) -> BankManifest:
        return await self._changed(asyncio.to_thread(rollback, self._store, version))

    async def _changed(self, change: Awaitable[BankManifest]) -> BankManifest:
        """Waits for a change of the bank, and until all replicas of the ingress serve it.

        Raises why the change or, where the bank is published and nevertheless refused, the serving of it failed.
        """
        try:
            bank = await change
        except Exception as error:
            raise from_ray(error) from error
        context = serve.get_replica_context()
        all_replicas = serve.get_deployment_handle(context.deployment, context.app_name)
        await self.look()
        await all_replicas.broadcast("look").results_async(return_exceptions=True)  # those who fail go on polling
        return bank

    async def decide(self, options: RoutingOptions, texts: Sequence[str]) -> Decision:
        began = time.perf_counter()
        bank = self._bank.bank()

        async def route(texts: Sequence[str]) -> Routing:
            routing: Routing = await self._ask_router("route", texts, bank.version, options.allowed, tracing.carried())
            return routing

        with tracing.span("route") as span:
            decision = await decide(bank, options, texts, route)
            span.set_attributes(tracing.decision_attributes(decision))
        self._metrics.decided(decision, time.perf_counter() - began)
        return decision

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        explanation: Explanation = await self._ask_router("explain", texts, decision.bank, decision.options.allowed)
        return explanation

    async def _ask_router(self, method: str, *args: Any) -> Any:
        """What a router replica answers; another one is asked where it dies. Raises RouterUnavailable."""
        limit = self._args.routing.timeout_s
        why = f"no router replica answered within {limit:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                for _ in range(ATTEMPTS):
                    try:
                        return await self._router.options(method_name=method).remote(*args)
                    except Exception as error:
                        failed = from_ray(error)
                        if not isinstance(failed, EngineFailed):
                            raise failed from error
                        log.warning("a router replica was lost; another is asked (%s)", failed.message)
                why = f"{ATTEMPTS} router replicas in turn were lost"
        raise RouterUnavailable(f"{why}; retry, or name an adapter as the model", retry_after=1.0)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Finished, None]:
        """Passes a replica's pieces on. A replica that is lost before its first piece is replaced by another."""
        for attempt in range(1, ATTEMPTS + 1):
            pieces = self._backbone.options(stream=True).generate.remote(
                replace(request, request_id=f"{request.request_id}-{attempt}")
            )
            sent = ended = False
            try:
                async for piece in pieces:
                    sent = True
                    yield piece
                ended = True
                return
            except Exception as error:
                ended = True
                failed = from_ray(error)
                if sent or attempt == ATTEMPTS or not isinstance(failed, EngineFailed):
                    raise failed from error
                log.warning("request %s: lost its replica before the first token; another runs it", request.request_id)
            finally:
                if not ended:
                    pieces.cancel()

    async def _prepare(self, bank: BankManifest) -> None:
        """Has every router and backbone replica get ready for a bank before requests use it."""
        handles = [self._backbone] if bank.router is None else [self._backbone, self._router]
        await asyncio.gather(*(self._prepare_all(handle, bank.version) for handle in handles))

    async def _prepare_all(self, handle: DeploymentHandle, version: str) -> None:
        try:
            await handle.prepare.remote(version)  # waits until there is a replica at all
            found = await handle.broadcast("prepare", version).results_async(
                timeout_s=PREPARE_S, return_exceptions=True
            )
        except Exception as error:
            raise from_ray(error) from error
        for failed in (from_ray(result) for result in found if isinstance(result, Exception)):
            if not isinstance(failed, EngineFailed):  # a replica that has just died; the next one prepares when asked
                raise failed
