"""The HTTP API: eight routes over a `Service`. Knows nothing of Ray.

POST /v1/chat/completions   POST /v1/completions    generate
POST /v1/route                                      what would serve this, and why; generates nothing
GET  /v1/models  /v1/models/{name}  /v1/bank        what there is
GET  /health                                        200 when requests can be served, else 503 and why
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from deployments import errors_http, openapi_docs
from deployments.args import LimitArgs, RoutingArgs
from deployments.choices import merged
from deployments.deadline import before, until
from deployments.generation import Delta, Finished, GenerationRequest
from deployments.http_input import AnyRequest, generations_of, parse, parse_route, read_json, wish_of
from deployments.openai_api import ChatRequest, CompletionRequest, TextRequest
from deployments.openai_replies import Answer, Reply, explanation_json, models_json, route_json
from dlp_core.decision import Decision, Wish
from dlp_core.errors import DLPError, UnknownModel

if TYPE_CHECKING:
    from dlp_core.bank import BankManifest
    from dlp_core.router.explanation import Explanation

Piece = Delta | Finished
IndexedPiece = tuple[int, Piece]
"""With the number of its choice."""


class Service(Protocol):
    """What the routes need. Each method raises errors of dlp_core.errors."""

    def bank(self) -> BankManifest:
        """The bank new requests use. Raises StoreUnavailable until there is one that can be served."""

    async def decide(self, wish: Wish, texts: Sequence[str]) -> Decision: ...

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        """Of a decision the router took part in."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]: ...


def create_api(service: Service, *, routing: RoutingArgs, limits: LimitArgs) -> FastAPI:
    api = FastAPI(title="dlp", description="A bank of LoRA adapters behind one OpenAI-compatible endpoint.")
    errors_http.install(api)
    started = int(time.time())

    @api.post("/v1/chat/completions", openapi_extra=openapi_docs.body(ChatRequest))
    async def chat(request: Request) -> Response:
        return await complete(parse(ChatRequest, await read_json(request, limits.max_body_bytes)))

    @api.post("/v1/completions", openapi_extra=openapi_docs.body(CompletionRequest))
    async def completions(request: Request) -> Response:
        return await complete(parse(CompletionRequest, await read_json(request, limits.max_body_bytes)))

    @api.post("/v1/route", openapi_extra=openapi_docs.body(TextRequest, ChatRequest, CompletionRequest))
    async def route(request: Request) -> Response:
        body = parse_route(await read_json(request, limits.max_body_bytes))
        end = deadline()
        decision = await decide(body, end)
        if decision.probabilities is None:
            return JSONResponse(route_json(decision))
        async with before(end):
            explanation = await service.explain(decision, body.routing_texts)
        return JSONResponse(route_json(decision) | explanation_json(explanation))

    @api.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": models_json(service.bank(), created=started)})

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        for entry in models_json(service.bank(), created=started):
            if entry["id"] == name:
                return JSONResponse(entry)
        raise UnknownModel(f"model {name!r} does not exist; GET /v1/models lists what does", param="model")

    @api.get("/v1/bank")
    async def bank() -> Response:
        return JSONResponse(service.bank().model_dump(mode="json"))

    @api.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok", "bank": service.bank().version})

    def deadline() -> float:
        return asyncio.get_running_loop().time() + limits.request_timeout_s

    async def decide(body: AnyRequest, end: float) -> Decision:
        async with before(end):
            return await service.decide(wish_of(body, routing), body.routing_texts)

    async def complete(body: ChatRequest | CompletionRequest) -> Response:
        """The whole life of a completion: decide, generate, answer."""
        end = deadline()
        decision = await decide(body, end)
        chat = isinstance(body, ChatRequest)
        reply = Reply(
            id=f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            created=int(time.time()),
            kind="chat" if chat else "text",
            decision=decision,
            with_logprobs=body.wanted_logprobs is not None,
            include_usage=body.include_usage,
        )
        generations = [service.generate(one) for one in generations_of(body, decision, reply.id)]
        pieces = until(end, merged(generations))
        headers = {"x-dlp-adapters": str(decision.mix)}
        if body.stream:
            # the first piece is waited for here, so that a refusal still has its status and headers
            first = await anext(pieces)
            return EventStream(events(reply, body.n, first, pieces), headers=headers)
        return JSONResponse(await collect(reply, body.n, pieces), headers=headers)

    openapi_docs.describe(api, ChatRequest, CompletionRequest, TextRequest)
    return api


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
    reply: Reply, choices: int, first: IndexedPiece, rest: AsyncGenerator[IndexedPiece, None]
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
            yield event(errors_http.body_of(errors_http.from_any(error)))
            return
        yield "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    # ASCII escapes: a raw U+2028 in the text would end the line for some readers of server-sent events
    return f"data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n"


async def chain(first: IndexedPiece, rest: AsyncIterator[IndexedPiece]) -> AsyncIterator[IndexedPiece]:
    yield first
    async for piece in rest:
        yield piece
