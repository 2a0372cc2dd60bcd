"""Parses a request's bytes into its body, its routing options and its generation requests."""

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
    """Read the body as JSON.

    Raises BodyTooLarge before holding much more than `limit` bytes, InvalidRequest if the body is not JSON.
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
        return from_json(bytes(body), allow_inf_nan=True)  # the field's validation rejects these by name
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
    """The request's routing options, with the server's defaults filled in. Raises InvalidRequest above its limits."""
    options = body.dlp
    max_adapters = options.max_adapters or routing.default_max_adapters
    if max_adapters > routing.max_adapters:
        raise InvalidRequest(
            f"dlp.max_adapters is {max_adapters}; this server mixes at most {routing.max_adapters}",
            param="dlp.max_adapters",
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
        max_adapters=max_adapters,
        weights=options.weights or routing.weights,
        min_confidence=routing.min_confidence if options.min_confidence is None else options.min_confidence,
        by_sentence=options.granularity == "sentence",
        adapters=None if explicit is None else tuple((part.name, part.weight) for part in explicit),
        fallback=routing.fallback,
    )


def generations_of(
    body: ChatRequest | CompletionRequest, decision: Decision, request_id: str
) -> list[GenerationRequest]:
    """One request per choice (`n`). With a seed the choices are reproducible, yet differ from each other."""
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
        replace(first, request_id=f"{request_id}-{index}", sampling=_sampling_for_choice(first.sampling, index))
        for index in range(body.n)
    ]


def _sampling_for_choice(sampling: Sampling, index: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)
