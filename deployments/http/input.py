"""From the bytes of a request to what the service is asked: body, routing options, generations."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from deployments.args import RoutingArgs
from deployments.http.errors import BodyTooLarge, from_validation
from deployments.http.requests import AnyRequest, ChatRequest, CompletionRequest, routed
from deployments.observe import tracing
from dlp_core.decision import Decision, RoutingOptions
from dlp_core.engine.request import Sampling
from dlp_core.errors import InvalidRequest
from dlp_core.generation.messages import GenerationRequest

Body = TypeVar("Body", bound=BaseModel)


async def read_json(request: Request, limit: int) -> object:
    """The JSON value of the body.

    Raises BodyTooLarge before much more than `limit` bytes are held, InvalidRequest for what is not JSON.
    """
    too_large = BodyTooLarge(f"the request body is larger than {limit} bytes; send less")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    try:
        return from_json(bytes(body), allow_inf_nan=True)  # refused by the field it stands in, which then has a name
    except ValueError as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from error


def parse(model: type[Body], data: object) -> Body:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise from_validation(error) from error


def parse_route(data: object) -> AnyRequest:
    try:
        return routed(data)
    except ValidationError as error:
        raise from_validation(error) from error


def routing_options(body: AnyRequest, routing: RoutingArgs) -> RoutingOptions:
    """What the request says about adapters, completed by the server's defaults and held to its limits."""
    options = body.dlp
    most = options.max_adapters or routing.default_max_adapters
    if most > routing.max_adapters:
        raise InvalidRequest(
            f"dlp.max_adapters is {most}; this server mixes at most {routing.max_adapters}", param="dlp.max_adapters"
        )
    explicit = options.adapters
    allowed = options.max_adapters or routing.max_adapters
    if explicit is not None and len(explicit) > allowed:
        raise InvalidRequest(
            f"dlp.adapters names {len(explicit)} adapters; at most {allowed} are mixed", param="dlp.adapters"
        )
    return RoutingOptions(
        model=body.model,
        top_p=routing.top_p if options.top_p is None else options.top_p,
        max_adapters=most,
        weights=options.weights or routing.weights,
        min_confidence=routing.min_confidence if options.min_confidence is None else options.min_confidence,
        by_sentence=options.granularity == "sentence",
        adapters=None if explicit is None else tuple((part.name, part.weight) for part in explicit),
        fallback=routing.fallback,
    )


def generations_of(
    body: ChatRequest | CompletionRequest, decision: Decision, request_id: str
) -> list[GenerationRequest]:
    """One for each of the `n` choices. A seed makes them repeatable and still different from each other."""
    first = GenerationRequest(
        request_id=request_id,
        bank=decision.bank,
        mix=decision.mix,
        source=body.source,
        sampling=body.sampling,
        stop=tuple(body.stop),
        by_sentence=decision.options if decision.by_sentence else None,
        trace=tracing.carried(),
    )
    return [
        replace(first, request_id=f"{request_id}-{index}", sampling=_of_choice(first.sampling, index))
        for index in range(body.n)
    ]


def _of_choice(sampling: Sampling, index: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)
