"""The HTTP API: eight routes over a `Service`. Knows nothing of Ray.

POST /v1/chat/completions   POST /v1/completions    generate
POST /v1/route                                      what would serve this, and why; generates nothing
GET  /v1/models  /v1/models/{name}  /v1/bank        what there is for the caller
GET  /health                                        200 when requests can be served, else 503 and why

The admin routes are in deployments/http/admin.py. Who sends a request is asked before anything else is looked at; what
a caller may not use does not exist for them.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Send

from deployments.args import LimitArgs, LogArgs, RoutingArgs
from deployments.http import admin, errors, openapi
from deployments.http.access import Access, Caller
from deployments.http.admin import AdminService
from deployments.http.choices import merged
from deployments.http.deadline import before, until
from deployments.http.errors import HTTPFault, answer, from_any, unknown_url
from deployments.http.input import generations_of, parse, parse_route, read_json, routing_options
from deployments.http.replies import Answer, Reply, explanation_json, models_json, route_json, visible
from deployments.http.request_log import RequestLogMiddleware, RequestRecord, record_of
from deployments.http.requests import AnyRequest, ChatRequest, CompletionRequest, TextRequest
from dlp_core.bank.follower import Refusal
from dlp_core.decision import Decision, RoutingOptions
from dlp_core.errors import DLPError, UnknownModel
from dlp_core.generation.messages import Delta, Finished, GenerationRequest, IndexedPiece, Piece

if TYPE_CHECKING:
    from dlp_core.bank.manifest import BankManifest
    from dlp_core.router.explanation import Explanation


class Service(AdminService, Protocol):
    """What the routes need. Each method raises errors of dlp_core.errors."""

    async def ready(self) -> None:
        """Returns when requests can be served, or when it is known why not."""

    def bank(self) -> BankManifest:
        """The bank new requests use. Raises StoreUnavailable until there is one that can be served."""

    def refused(self) -> Refusal | None:
        """The bank that was published and cannot be served."""

    async def decide(self, options: RoutingOptions, texts: Sequence[str]) -> Decision: ...

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        """Of a decision the router took part in."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]: ...


def create_api(
    service: Service,
    *,
    routing: RoutingArgs,
    limits: LimitArgs,
    access: Access,
    log: LogArgs | None = None,
    answers_id: bool = True,
) -> FastAPI:
    """`answers_id` is False behind a server that sends `x-request-id` back itself."""
    api = FastAPI(
        title="dlp",
        lifespan=partial(lifespan, service),
        description="A bank of LoRA adapters behind one OpenAI-compatible endpoint.",
        telemetry={"operation_spans": False, "exclude": lambda scope: scope["path"].endswith("/health")},
    )
    install(api)
    started = int(time.time())

    @api.post("/v1/chat/completions", openapi_extra=openapi.body(ChatRequest))
    async def chat(request: Request) -> Response:
        return await complete(request, ChatRequest)

    @api.post("/v1/completions", openapi_extra=openapi.body(CompletionRequest))
    async def completions(request: Request) -> Response:
        return await complete(request, CompletionRequest)

    @api.post("/v1/route", openapi_extra=openapi.body(TextRequest, ChatRequest, CompletionRequest))
    async def route(request: Request) -> Response:
        caller = caller_of(request)
        body = parse_route(await read_json(request, limits.max_body_bytes))
        end = deadline()
        decision = await decide(body, caller, end, record_of(request))
        if decision.probabilities is None:
            return JSONResponse(route_json(decision))
        async with before(end):
            explanation = await service.explain(decision, body.routing_texts)
        return JSONResponse(route_json(decision) | explanation_json(explanation))

    @api.get("/v1/models")
    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": models_json(bank_for(caller_of(request)), created=started)})

    @api.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        for entry in models_json(bank_for(caller_of(request)), created=started):
            if entry["id"] == name:
                return JSONResponse(entry)
        raise UnknownModel(f"model {name!r} does not exist; GET /v1/models lists what does", param="model")

    @api.get("/v1/bank")
    async def bank(request: Request) -> Response:
        return JSONResponse(bank_for(caller_of(request)).model_dump(mode="json"))

    @api.get("/health")
    async def health() -> Response:
        serving, refused = service.bank().version, service.refused()
        report = {} if refused is None else {"refused": {"version": refused.version, "reason": refused.reason}}
        return JSONResponse({"status": "ok", "bank": serving, **report})

    def caller_of(request: Request) -> Caller:
        return record_of(request).called_by(access.caller(request.headers.get("authorization")))

    def bank_for(caller: Caller) -> BankManifest:
        """The bank as the caller may see it."""
        whole = service.bank()
        return visible(whole, caller.allowed(adapter.name for adapter in whole.adapters))

    def deadline() -> float:
        return asyncio.get_running_loop().time() + limits.request_timeout_s

    async def decide(body: AnyRequest, caller: Caller, end: float, record: RequestRecord) -> Decision:
        record.asked(body)
        options = routing_options(body, routing)
        if caller.adapters is not None:
            names = [adapter.name for adapter in service.bank().adapters]
            options = replace(options, allowed=caller.allowed(names))
        async with before(end):
            return record.decided(await service.decide(options, body.routing_texts))

    async def complete(request: Request, kind: type[ChatRequest | CompletionRequest]) -> Response:
        """The whole life of a completion: decide, generate, answer."""
        caller, record = caller_of(request), record_of(request)
        body = parse(kind, await read_json(request, limits.max_body_bytes))
        end = deadline()
        decision = await decide(body, caller, end, record)
        chat = isinstance(body, ChatRequest)
        reply = Reply(
            id=f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            created=int(time.time()),
            kind="chat" if chat else "text",
            decision=decision,
            with_logprobs=body.wanted_logprobs is not None,
            include_usage=body.include_usage,
        )
        generations = [
            service.generate(one) for one in generations_of(body, decision, f"{record.request_id}/{reply.id}")
        ]
        pieces = record.watched(until(end, merged(generations)))
        headers = {"x-dlp-adapters": str(decision.mix)}
        if body.stream:
            # the first piece is waited for here, so that a refusal still has its status and headers
            first = await anext(pieces)
            return EventStream(events(reply, body.n, first, pieces, record), headers=headers)
        return JSONResponse(await collect(reply, body.n, pieces), headers=headers)

    admin.install(api, service, access, limits)
    openapi.describe(api, ChatRequest, CompletionRequest, TextRequest, *admin.BODIES)
    # outside even of what answers unforeseen errors, which add_middleware would not be
    api.middleware_stack = RequestLogMiddleware(api.build_middleware_stack(), log or LogArgs(), answers_id=answers_id)
    return api


@asynccontextmanager
async def lifespan(service: Service, _: FastAPI) -> AsyncIterator[None]:
    # Serve sends requests only to replicas that have started: a new one must not answer 503 beside one that serves
    await service.ready()
    yield


class EventStream(StreamingResponse):
    """Server-sent events. Closes its source when it ends, also when the client goes away in the middle."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[str, None], *, headers: dict[str, str]) -> None:
        super().__init__(source, headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._source = source

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._source):
            await super().stream_response(send)


async def collect(reply: Reply, choices: int, pieces: AsyncGenerator[IndexedPiece, None]) -> dict[str, Any]:
    answers = [Answer() for _ in range(choices)]
    async with aclosing(pieces):
        async for index, piece in pieces:
            if isinstance(piece, Finished):
                answers[index].finished = piece
            else:
                answers[index].add(piece)
    if any(answer.finished is None for answer in answers):
        raise DLPError("the backbone ended a generation without saying why")
    return reply.whole(answers)


async def events(
    reply: Reply, choices: int, first: IndexedPiece, rest: AsyncGenerator[IndexedPiece, None], record: RequestRecord
) -> AsyncGenerator[str, None]:
    """The answer as server-sent events. An error after the first token becomes the last event, without [DONE]."""
    finished: dict[int, Finished] = {}
    async with aclosing(rest):
        try:
            for chunk in reply.opening(choices):
                yield event(chunk)
            async for index, piece in chain(first, rest):
                if isinstance(piece, Delta):
                    yield event(reply.delta(index, piece))
                    continue
                finished[index] = piece
                end = reply.ending(index, piece)
                ended = len(finished) == choices
                for chunk in reply.closing(end, [finished[i] for i in range(choices)]) if ended else [end]:
                    yield event(chunk)
        except Exception as error:
            told = errors.from_any(error)
            record.failed(told)
            yield event(errors.body_of(told))
            return
        yield "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    # ASCII escapes: a raw U+2028 in the text would end the line for some readers of server-sent events
    return f"data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n"


async def chain(first: IndexedPiece, rest: AsyncIterator[IndexedPiece]) -> AsyncIterator[IndexedPiece]:
    yield first
    async for piece in rest:
        yield piece


def install(api: FastAPI) -> None:
    """Makes every error of `api` leave it OpenAI-shaped."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return told(request, from_any(error))

    def told(request: Request, error: DLPError) -> JSONResponse:
        record_of(request).failed(error)
        return answer(error)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}"
        fault = unknown_url(what) if error.status_code in (404, 405) else HTTPFault(str(error.detail))
        fault.status = error.status_code
        fault.code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        reply = told(request, fault)
        reply.headers.update(error.headers or {})
        return reply

    api.add_exception_handler(DLPError, ours)
    api.add_exception_handler(HTTPException, http)
    api.add_exception_handler(Exception, ours)
