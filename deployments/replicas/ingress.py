"""The ingress: the HTTP API in front of the router pool and the backbone replicas. Stateless, without torch."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.args import AppArgs
from deployments.http.access import open_access
from deployments.http.admin import CanaryBank, LoadAdapter, PublishBank, Published, ShadowBank
from deployments.http.app import create_app
from deployments.http.keeping import Keeper
from deployments.links.parts import Listening, Part
from deployments.links.receiving import Receiver
from deployments.observe import tracing
from deployments.observe.cluster import ClusterMetrics
from deployments.observe.metrics import BankMetrics, KeptMetrics, RequestMetrics, RolloutMetrics, RoutingMetrics
from deployments.replicas.errors import from_ray
from deployments.replicas.process import join_library_log
from dlp_core.bank.canary import promote, start_canary, start_shadow, stop_canary, stop_shadow
from dlp_core.bank.difference import BankDiff, diff
from dlp_core.bank.follower import BankFollower, Refusal
from dlp_core.bank.manifest import BankManifest, Shadow
from dlp_core.bank.publish import rollback
from dlp_core.bank.reading import BankVersion, list_versions, load_manifest
from dlp_core.bank.retention import pin, unpin
from dlp_core.bank.revision import without_adapter
from dlp_core.bank.rollout import Picked, Rollout, ShadowCounts
from dlp_core.decision import Decision, RoutingOptions, decide
from dlp_core.errors import EngineFailed, RouterUnavailable, StepFailed
from dlp_core.eval.history import judged_in
from dlp_core.fleet.trial import Outcome
from dlp_core.generation.messages import GenerationRequest, Piece
from dlp_core.router import Passage, Routing
from dlp_core.router.explanation import Explanation
from dlp_core.store.opening import open_store

Change = TypeVar("Change")

log = logging.getLogger("ray.serve")

PREPARE_S = 120.0
"""Maximum wait for the replicas to prepare a bank; after that the follower retries."""

ATTEMPTS = 3
"""Replicas a request may be tried on while nothing of its response has been sent."""


@serve.ingress()
class Ingress:
    def __init__(self, args: AppArgs, backbone: DeploymentHandle, router: DeploymentHandle) -> None:
        tracing.start()
        join_library_log()
        self._args = args
        self._backbone = backbone
        self._router = router
        self._links = copy.copy(backbone)  # has a queue of its own: links must not wait behind requests
        self._id = uuid.uuid4().hex
        self._receiver = Receiver(self._listen)
        self._metrics = RoutingMetrics()
        self._bank_metrics = BankMetrics()
        self._access = open_access(args.access)
        self._store = open_store(args.bank)
        self._keeper = None
        if args.feedback.keep:
            self._keeper = Keeper(self._store, args.feedback, prompts=args.log.prompts, replica=self._id)
        self._kept_metrics = KeptMetrics()
        self._bank = BankFollower(
            self._store, poll_s=args.bank_poll_s, prepare=self._prepare, on_poll=self._report_bank
        )
        self._rollout_metrics = RolloutMetrics()
        self._rollout = Rollout(
            self._store,
            self._bank,
            replica=self._id,
            on_turn=self._rollout_metrics.turned,
            on_end=self._rollout_metrics.canary_ended,
        )
        self._following = [
            asyncio.create_task(self._bank.follow()),
            asyncio.create_task(self._rollout.follow(args.bank_poll_s)),
        ]

    def __serve_build_asgi_app__(self) -> FastAPI:
        args = self._args
        return create_app(
            self,
            routing=args.routing,
            limits=args.limits,
            access=self._access,
            share=args.cache.share,
            log=args.log,
            keeper=self._keeper,
            console_url=args.console_url,
            on_end=RequestMetrics().ended,
            sets_id_header=False,
        )

    def check_health(self) -> None:
        """Raise if what follows the banks ended with an unexpected error: Ray then replaces the replica."""
        for following in self._following:
            if following.done():
                following.result()

    async def ready(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PREPARE_S):
                await self._bank.settled.wait()

    def bank(self) -> BankManifest:
        return self._bank.bank()

    @cached_property
    def _all_metrics(self) -> ClusterMetrics:
        return ClusterMetrics(serve.get_replica_context().app_name)

    async def metrics(self) -> bytes:
        return await self._all_metrics.text()

    def refused(self) -> Refusal | None:
        return self._bank.refused

    def _report_bank(self) -> None:
        banks = self._bank
        self._bank_metrics.polled(
            refused=banks.refused is not None or bool(banks.refused_beside), versions=banks.versions_in_use()
        )
        if self._keeper is not None:
            for kind, counts in self._keeper.counts.items():
                self._kept_metrics.state(kind, written=counts.written, dropped=counts.dropped, waiting=counts.waiting)

    async def look(self) -> None:
        """Follow the pointer now instead of at the next poll. Raises why its bank cannot be served."""
        await self._bank.look()

    async def load_adapter(self, body: LoadAdapter) -> Published:
        return await self._apply(self._backbone.load_adapter.remote(body))

    async def unload_adapter(self, name: str) -> BankManifest:
        return await self._apply(asyncio.to_thread(without_adapter, self._store, name))

    async def publish(self, body: PublishBank) -> Published:
        return await self._apply(self._backbone.publish.remote(body))

    async def rollback(self, version: str | None) -> BankManifest:
        return await self._apply(asyncio.to_thread(rollback, self._store, version))

    async def set_canary(self, body: CanaryBank) -> None:
        if body.version is None:
            await self._apply(asyncio.to_thread(stop_canary, self._store))
            return
        start = partial(
            start_canary,
            self._store,
            body.version,
            share=body.share,
            sticky_by=body.sticky_by,
            promote_after_requests=body.promote_after_requests,
            promote_after_hours=body.promote_after_hours,
        )
        await self._apply(asyncio.to_thread(start))

    async def promote(self) -> None:
        await self._apply(asyncio.to_thread(promote, self._store))

    async def set_shadow(self, body: ShadowBank) -> None:
        if body.version is None:
            await self._apply(asyncio.to_thread(stop_shadow, self._store))
        else:
            await self._apply(
                asyncio.to_thread(partial(start_shadow, self._store, body.version, generate=body.generate))
            )

    def rollout(self) -> dict[str, Any]:
        return self._rollout.report()

    def pick(self, *, version: str | None, user: str | None, key: str | None, request: str) -> Picked:
        return self._rollout.pick(version=version, user=user, key=key, request=request)

    def ended(self, picked: Picked, outcome: Outcome) -> None:
        self._rollout_metrics.ended(picked.role, outcome)
        self._rollout.ended(picked, outcome)

    def rated(self, request: str, issued: float, *, negative: bool, user: str | None, key: str | None) -> None:
        self._rollout.rated(request, issued, negative=negative, user=user, key=key)

    def shadow(self) -> Shadow | None:
        return self._rollout.shadow()

    def compared(self, version: str, counts: ShadowCounts) -> None:
        self._rollout_metrics.compared(counts)
        self._rollout.compared(version, counts)

    async def pin(self, version: str, *, pinned: bool) -> None:
        await asyncio.to_thread(pin if pinned else unpin, self._store, version)

    async def versions(self) -> Sequence[BankVersion]:
        return await asyncio.to_thread(list_versions, self._store)

    async def diff(self, a: str, b: str) -> BankDiff:
        before, after = await asyncio.gather(
            *(asyncio.to_thread(load_manifest, self._store, version) for version in (a, b))
        )
        return diff(before, after)

    async def evaluations(self) -> dict[str, list[dict[str, Any]]]:
        return await asyncio.to_thread(judged_in, self._store)

    async def _apply(self, change: Awaitable[Change]) -> Change:
        """Wait for a change of the bank and until all ingress replicas serve it; return what it returned.

        Raises the reason if the change failed, or if the bank was published but cannot be served.
        """
        try:
            changed = await change
        except Exception as error:
            raise from_ray(error) from error
        context = serve.get_replica_context()
        all_replicas = serve.get_deployment_handle(context.deployment, context.app_name)
        await self.look()
        await all_replicas.broadcast("look").results_async(return_exceptions=True)  # a replica that fails keeps polling
        return changed

    async def decide(self, picked: Picked, options: RoutingOptions, texts: Sequence[str]) -> Decision:
        began = time.perf_counter()
        bank = picked.bank

        async def route(texts: Sequence[str]) -> Routing:
            routing: Routing = await self._ask_router("route", texts, bank.version, options.allowed, tracing.carried())
            return routing

        with tracing.span("route") as span:
            decision = await decide(bank, options, texts, route)
            span.set_attributes(tracing.decision_attributes(decision))
        self._metrics.decided(decision, time.perf_counter() - began, role=picked.role)
        return decision

    async def decode(self, ids: Sequence[int]) -> str:
        """Ask a backbone replica for the text of token ids, and another one if it dies."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                text: str = await self._backbone.decode.remote(ids)
                return text
            except Exception as error:
                failed = from_ray(error)
                if attempt == ATTEMPTS or not isinstance(failed, EngineFailed):
                    raise failed from error
        raise AssertionError("unreachable")

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        explanation: Explanation = await self._ask_router("explain", texts, decision.bank, decision.options.allowed)
        return explanation

    async def divide(self, decision: Decision, texts: Sequence[str]) -> list[Passage]:
        passages: list[Passage] = await self._ask_router("divide", texts, decision.bank, decision.options.allowed)
        return passages

    async def _ask_router(self, method: str, *args: Any) -> Any:
        """Call a router replica, and another one if it dies. Raises RouterUnavailable."""
        timeout_s = self._args.routing.timeout_s
        reason = f"no router replica answered within {timeout_s:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for _ in range(ATTEMPTS):
                    try:
                        return await self._router.options(method_name=method).remote(*args)
                    except Exception as error:
                        failed = from_ray(error)
                        if not isinstance(failed, EngineFailed):
                            raise failed from error
                        log.warning("lost a router replica; trying another (%s)", failed.message)
                reason = f"{ATTEMPTS} router replicas in a row were lost"
        raise RouterUnavailable(f"{reason}; retry, or name an adapter as the model", retry_after=1.0)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[Piece, ...], None]:
        """Forward the pieces of a replica. If it is lost before its first piece, another one runs the request."""
        for attempt in range(1, ATTEMPTS + 1):
            request_id = f"{request.request_id}-{attempt}"
            call = self._backbone.options(stream=True).generate.remote(
                replace(request, request_id=request_id), self._id
            )
            sent = ended = False
            try:
                async with aclosing(self._receiver.receive(request_id, call)) as received:
                    async for pieces in received:
                        sent = True
                        yield pieces
                ended = True
                return
            except Exception as error:
                ended = True
                failed = from_ray(error)
                if isinstance(failed, StepFailed):  # another replica would end as this one did
                    self._metrics.ended_a_replica()
                    log.error("request %s: %s; it is not tried on another", request.request_id, failed.message)
                    raise failed from error
                if sent or attempt == ATTEMPTS or not isinstance(failed, EngineFailed):
                    raise failed from error
                log.warning("request %s: lost its replica before the first token; trying another", request.request_id)
            finally:
                if not ended:
                    call.cancel()

    async def _listen(self, replica: str) -> AsyncGenerator[tuple[Part, ...], None]:
        """What a backbone replica sends for all the answers that it computes for this one."""
        call = self._links.options(stream=True).listen.remote(Listening(replica, self._id))
        try:
            async for parts in call:
                yield parts
        except Exception as error:
            raise from_ray(error) from error
        finally:
            call.cancel()

    async def _prepare(self, bank: BankManifest) -> None:
        """Prepare every router and backbone replica for a bank before requests use it."""
        handles = [self._backbone] if bank.router is None else [self._backbone, self._router]
        await asyncio.gather(*(self._prepare_all(handle, bank.version) for handle in handles))

    async def _prepare_all(self, handle: DeploymentHandle, version: str) -> None:
        try:
            await handle.prepare.remote(version)  # waits for the first replica
            results = await handle.broadcast("prepare", version).results_async(
                timeout_s=PREPARE_S, return_exceptions=True
            )
        except Exception as error:
            raise from_ray(error) from error
        for failed in (from_ray(result) for result in results if isinstance(result, Exception)):
            if not isinstance(failed, EngineFailed):  # the replica just died; its successor prepares on demand
                raise failed
