"""The front of the application: the HTTP API over the router pool and the backbone replicas. Stateless, no torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from deployments.args import AppArgs
from deployments.bank_follower import BankFollower
from deployments.errors_ray import from_ray
from deployments.generation import Delta, Finished, GenerationRequest
from deployments.http_api import create_api
from deployments.metrics import RoutingMetrics
from dlp_core.bank import BankManifest
from dlp_core.decision import Decision, Wish, decide
from dlp_core.router import Routing
from dlp_core.router.explanation import Explanation
from dlp_core.store import open_store

ATTEMPTS = 2
"""Replicas a generation may be tried on, as long as none of its tokens was sent."""


@serve.ingress()
class Ingress:
    def __init__(self, args: AppArgs, router: DeploymentHandle, backbone: DeploymentHandle) -> None:
        self._args = args
        self._router = router
        self._backbone = backbone
        self._metrics = RoutingMetrics()
        self._bank = BankFollower(open_store(args.bank), poll_s=args.bank_poll_s, prepare=self._prepare)
        self._following = asyncio.create_task(self._bank.follow())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self, routing=self._args.routing, limits=self._args.limits)

    def check_health(self) -> None:
        """Ray replaces the replica when the follower died of something nobody foresaw."""
        if self._following.done():
            self._following.result()

    def bank(self) -> BankManifest:
        return self._bank.bank()

    async def decide(self, wish: Wish, texts: Sequence[str]) -> Decision:
        began = time.perf_counter()
        bank = self._bank.bank()

        async def route(texts: Sequence[str]) -> Routing:
            try:
                routing: Routing = await self._router.route.remote(texts, bank.version, wish.allowed)
            except Exception as error:
                raise from_ray(error) from error
            return routing

        decision = await decide(bank, wish, texts, route)
        self._metrics.decided(decision, time.perf_counter() - began)
        return decision

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        try:
            explanation: Explanation = await self._router.explain.remote(texts, decision.bank, decision.wish.allowed)
        except Exception as error:
            raise from_ray(error) from error
        return explanation

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Finished, None]:
        """Passes a replica's pieces on. A replica that dies before its first piece is replaced by another, once."""
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
            except RayActorError as error:
                ended = True
                if sent or attempt == ATTEMPTS:
                    raise from_ray(error) from error
            except Exception as error:
                ended = True
                raise from_ray(error) from error
            finally:
                if not ended:
                    pieces.cancel()

    async def _prepare(self, bank: BankManifest) -> None:
        """Has a router and a backbone replica read a bank before requests use it."""
        calls = [self._backbone.prepare.remote(bank.version)]
        if bank.router is not None:
            calls.append(self._router.prepare.remote(bank.version))
        try:
            await asyncio.gather(*calls)
        except Exception as error:
            raise from_ray(error) from error
