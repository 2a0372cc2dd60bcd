"""The routes of the HTTP API over a `Service`. Knows nothing of Ray.

POST /v1/chat/completions   POST /v1/completions    generate
POST /v1/route                                      which adapters would serve this, and why; no generation
GET  /v1/models  /v1/models/{name}  /v1/bank        models and adapters the caller may use
GET  /health                                        200 when requests can be served, else 503; where there are keys,
                                                    only their holders are told versions and reasons
GET  /metrics                                       Prometheus text of all replicas, for the operator
GET  /                                              where all this is
GET  /openapi.json  /docs                           this API

The admin routes are in admin.py, those of feedback in feedback.py; app.py assembles the application. A request is
authenticated before anything else is read. An adapter the caller may not use is reported as unknown.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, Response

from deployments.args import LimitArgs, RoutingArgs
from deployments.http import openapi
from deployments.http.access import Access, Caller
from deployments.http.admin import AdminService
from deployments.http.admission import Admission
from deployments.http.errors import unknown_field
from deployments.http.feedback import FeedbackService
from deployments.http.ids import issue
from deployments.http.index import index
from deployments.http.input import generations_of, parse, parse_route, read_json, routing_options
from deployments.http.replies import Reply, bank_json, explanation_json, models_json, passages_json, route_json, visible
from deployments.http.request_log import record_of
from deployments.http.requests import AnyRequest, ChatRequest, CompletionRequest, TextRequest
from deployments.http.shadow import Shadowing
from deployments.http.sharing import Share, salt_of
from deployments.http.streams import AnswerStream, EventStream, within
from deployments.observe.exposition import CONTENT_TYPE
from dlp_core.bank.rollout import Picked, ShadowCounts
from dlp_core.decision import Decision, RoutingOptions, usable
from dlp_core.errors import (
    AdapterRefused,
    AdapterUnavailable,
    BankError,
    DLPError,
    InvalidRequest,
    NotFinite,
    UnknownModel,
)
from dlp_core.generation.messages import GenerationRequest, Piece, Source, TokenIds
from dlp_core.text.chat import routing_texts

if TYPE_CHECKING:
    from dlp_core.bank.follower import Refusal
    from dlp_core.bank.manifest import BankManifest, Shadow
    from dlp_core.fleet.trial import Outcome
    from dlp_core.router import Passage
    from dlp_core.router.explanation import Explanation

log = logging.getLogger("ray.serve")

_HEADER_LENGTH = 512

_OF_THE_BANK = (AdapterRefused, AdapterUnavailable, BankError, NotFinite, UnknownModel)
"""Errors that another bank may not have: a request that gets one from a canary is given to the serving bank."""

BODIES = (ChatRequest, CompletionRequest, TextRequest)


class Service(AdminService, FeedbackService, Protocol):
    """What the routes need. Every method raises errors of dlp_core.errors."""

    async def ready(self) -> None:
        """Wait until requests can be served or the reason they cannot is known."""

    def bank(self) -> BankManifest:
        """The bank that serves. Raises StoreUnavailable until a bank can be served."""

    def pick(self, *, version: str | None, user: str | None, key: str | None, request: str) -> Picked:
        """The bank for a request (dlp_core.bank.rollout.Rollout.pick)."""

    def ended(self, picked: Picked, outcome: Outcome) -> None:
        """Note what became of a request."""

    def shadow(self) -> Shadow | None:
        """The shadow in use."""

    def compared(self, version: str, counts: ShadowCounts) -> None:
        """Add what came of a comparison with a shadow."""

    def rollout(self) -> dict[str, Any]:
        """Canary and shadow beside the serving bank, as JSON; empty until there is a bank."""

    def refused(self) -> Refusal | None:
        """The published bank that cannot be served, with the reason; None if there is none."""

    async def metrics(self) -> bytes:
        """The metrics of all replicas, as Prometheus text."""

    async def decide(self, picked: Picked, options: RoutingOptions, texts: Sequence[str]) -> Decision: ...

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of a prompt that comes as token ids."""

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        """Explain a decision that the router made."""

    async def divide(self, decision: Decision, texts: Sequence[str]) -> list[Passage]:
        """The passages of a request whose sentences are routed one by one."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[Piece, ...], None]:
        """The pieces of one completion, those that came together in one tuple."""


class Api:
    """One method per route."""

    def __init__(
        self,
        service: Service,
        *,
        routing: RoutingArgs,
        limits: LimitArgs,
        access: Access,
        admission: Admission,
        share: Share,
        console_url: str | None,
    ) -> None:
        self._service = service
        self._share = share
        self._routing = routing
        self._limits = limits
        self._access = access
        self._admission = admission
        self._shadowing = Shadowing(service, timeout_s=limits.request_timeout_s)
        self._console_url = console_url
        self._started = int(time.time())

    def add_to(self, app: FastAPI) -> None:
        app.post("/v1/chat/completions", openapi_extra=openapi.body(ChatRequest))(self.chat)
        app.post("/v1/completions", openapi_extra=openapi.body(CompletionRequest))(self.completions)
        app.post("/v1/route", openapi_extra=openapi.body(TextRequest, ChatRequest, CompletionRequest))(self.route)
        for path, answer in (
            ("/v1/models", self.models),
            ("/v1/models/{name:path}", self.model),
            ("/v1/bank", self.bank),
            ("/health", self.health),
            ("/metrics", self.metrics),
            ("/", self.index),
        ):
            app.get(path)(answer)
            app.head(path, include_in_schema=False)(answer)  # probes ask for the head alone
        app.get("/openapi.json", include_in_schema=False)(self.openapi)
        app.get("/docs", include_in_schema=False)(self.docs)

    async def chat(self, request: Request) -> Response:
        return await self._complete(request, ChatRequest)

    async def completions(self, request: Request) -> Response:
        return await self._complete(request, CompletionRequest)

    async def route(self, request: Request) -> Response:
        caller = self._caller(request)
        body = parse_route(await read_json(request, self._limits))
        deadline = self._deadline()
        if len(body.sources) > 1:
            raise InvalidRequest("prompt: only one is routed here; send several requests", param="prompt")
        id = issue("route", caller)
        picked = self._pick(body, caller, id)
        [decision] = await self._decide(request, body, caller, picked, deadline)
        record_of(request).answered(id)
        if decision.probabilities is None:
            return JSONResponse(route_json(decision, id))
        async with within(deadline):
            texts = await self._texts(body.sources[0], decision.options)
            explanation = await self._service.explain(decision, texts)
            passages = await self._service.divide(decision, texts) if decision.by_sentence else None
        reply = route_json(decision, id) | explanation_json(explanation)
        if passages is not None:
            reply |= passages_json(decision, passages, picked.bank)
        return JSONResponse(reply)

    async def models(self, request: Request) -> Response:
        bank = self._visible_bank(self._caller(request))
        return JSONResponse({"object": "list", "data": models_json(bank, created=self._started)})

    async def model(self, request: Request, name: str) -> Response:
        for entry in models_json(self._visible_bank(self._caller(request)), created=self._started):
            if entry["id"] == name:
                return JSONResponse(entry)
        raise UnknownModel(f"model {name!r} does not exist; GET /v1/models lists the models", param="model")

    async def bank(self, request: Request) -> Response:
        bank = self._service.bank()
        allowed = _usable(bank, self._caller(request))
        rollout = self._service.rollout() if allowed is None else {}  # what tells of adapters that a key may not see
        return JSONResponse(bank_json(bank, allowed) | ({"rollout": rollout} if rollout else {}))

    async def openapi(self, request: Request) -> Response:
        self._caller(request)
        return JSONResponse(request.app.openapi())

    async def docs(self, request: Request) -> Response:
        self._caller(request)
        return get_swagger_ui_html(openapi_url="/openapi.json", title=request.app.title)

    async def health(self, request: Request) -> Response:
        known = self._access.knows(request.headers.get("authorization"))
        try:
            serving, refused = self._service.bank().version, self._service.refused()
        except DLPError as error:
            raise error if known else type(error)("not ready; the server's log says why") from None
        if not known:
            return JSONResponse({"status": "ok"})
        report = {} if refused is None else {"refused": {"version": refused.version, "reason": refused.reason}}
        return JSONResponse({"status": "ok", "bank": serving, **report})

    async def metrics(self, request: Request) -> Response:
        self._access.require_metrics(request.headers.get("authorization"))
        return Response(await self._service.metrics(), media_type=CONTENT_TYPE)

    async def index(self, request: Request) -> Response:
        known = self._access.knows(request.headers.get("authorization"))
        return index(request, known=known, console_url=self._console_url)

    async def _complete(self, request: Request, kind: type[ChatRequest | CompletionRequest]) -> Response:
        """Handle a completion: authenticate, parse, pick the bank, answer. What a canary fails at, the serving bank
        answers."""
        caller, record = self._caller(request), record_of(request)
        body = parse(kind, await read_json(request, self._limits))
        if self._limits.strict_fields and body.ignored:
            raise unknown_field(body.ignored[0])
        record.admit(body.choices)
        deadline = self._deadline()
        reply_id = issue("chatcmpl" if isinstance(body, ChatRequest) else "cmpl", caller)
        picked = record.picked(self._pick(body, caller, reply_id), self._service.ended)
        try:
            return await self._answer(request, body, caller, picked, reply_id=reply_id, deadline=deadline)
        except _OF_THE_BANK as error:
            if picked.draw is None or picked.role != "canary":
                raise
            log.warning("request %s: canary %s: %s", record.request_id, picked.bank.version, error.message)
            record.spoiled(error)
        serving = record.picked(Picked(self._service.bank(), "serving"), self._service.ended)
        return await self._answer(request, body, caller, serving, reply_id=reply_id, deadline=deadline)

    async def _answer(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        caller: Caller,
        picked: Picked,
        *,
        reply_id: str,
        deadline: float,
    ) -> Response:
        """Choose the mix, generate, respond."""
        record = record_of(request)
        decisions = await self._decide(request, body, caller, picked, deadline)
        chat = isinstance(body, ChatRequest)
        reply = Reply(
            id=record.answered(reply_id),
            created=int(time.time()),
            kind="chat" if chat else "text",
            decisions=decisions,
            with_logprobs=body.requested_logprobs is not None,
            include_usage=body.include_usage,
        )
        request_id = f"{record.request_id}/{reply.id}{'' if picked.draw is None else f'-{picked.role}'}"
        salt = salt_of(self._share, caller, body.cache_salt, request_id)
        requests = generations_of(body, decisions, request_id, salt)
        generations = [self._service.generate(generation) for generation in requests]
        if picked.role == "serving" and body.dlp.bank is None:

            async def decide(other: Picked) -> Decision:
                options = self._options(body, caller, other)
                return await self._service.decide(other, options, await self._texts(body.sources[0], options))

            generations[0] = self._shadowing.beside(decisions[0], requests[0], generations[0], decide)
        answer = AnswerStream(reply, generations, record=record, deadline=deadline)
        mixes = "; ".join(str(decision.mix) for decision in decisions)
        headers = {"x-dlp-adapters": mixes[:_HEADER_LENGTH]} | self._ignored(body)
        if not body.stream:
            return JSONResponse(await answer.collect(), headers=headers)
        await answer.begin()
        return EventStream(answer, headers=headers)

    async def _decide(
        self, request: Request, body: AnyRequest, caller: Caller, picked: Picked, deadline: float
    ) -> list[Decision]:
        """The decision for each of the body's prompts."""
        record = record_of(request)
        record.parsed(body)
        options = self._options(body, caller, picked)

        async def decide(source: Source) -> Decision:
            texts = await self._texts(source, options)
            decision = await self._service.decide(picked, options, texts)
            if len(body.sources) == 1 and options.asks_router:  # of several prompts, none would be the request's
                record.routed(texts[decision.turn])
            return decision

        async with within(deadline):
            decisions = await asyncio.gather(*map(decide, body.sources))
        record.decided(decisions[0])
        return decisions

    def _options(self, body: AnyRequest, caller: Caller, picked: Picked) -> RoutingOptions:
        options = routing_options(body, self._routing)
        most = options.max_adapters if options.asks_router else None
        return replace(options, allowed=_usable(picked.bank, caller, max_adapters=most))

    def _pick(self, body: AnyRequest, caller: Caller, id: str) -> Picked:
        """The bank for a request. Raises UnknownModel for a version that is not in use."""
        user = None if isinstance(body, TextRequest) else body.user
        key = caller.name if caller.limited else None
        return self._service.pick(version=body.dlp.bank, user=user, key=key, request=id)

    async def _texts(self, source: Source, options: RoutingOptions) -> tuple[str, ...]:
        """The texts the router reads: the first that fits an adapter decides."""
        if isinstance(source, TokenIds):
            return (await self._service.decode(source.ids),) if options.asks_router else ()
        return (source,) if isinstance(source, str) else routing_texts(source)

    def _ignored(self, body: ChatRequest | CompletionRequest) -> dict[str, str]:
        """The header that names ignored fields."""
        paths = ",".join(body.ignored)[:_HEADER_LENGTH]
        return {"x-dlp-ignored": re.sub(r"[^!-~]", "_", paths)} if paths else {}

    def _caller(self, request: Request) -> Caller:
        caller = self._access.caller(request.headers.get("authorization"))
        return record_of(request).authenticated(caller, self._admission)

    def _visible_bank(self, caller: Caller) -> BankManifest:
        """The bank, restricted to the adapters the caller may use."""
        bank = self._service.bank()
        return visible(bank, _usable(bank, caller))

    def _deadline(self) -> float:
        """The deadline of a request that starts now, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self._limits.request_timeout_s


def _usable(bank: BankManifest, caller: Caller, *, max_adapters: int | None = None) -> frozenset[str] | None:
    """The adapters and recipes that the caller may use, None for all; of recipes those of at most `max_adapters`."""
    adapters = None if caller.adapters is None else caller.allowed(adapter.name for adapter in bank.adapters)
    return usable(bank, adapters, max_adapters=max_adapters)
