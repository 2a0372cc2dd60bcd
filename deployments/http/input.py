"""Parses a request's bytes into its body, its routing options and its generation requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from deployments.args import LimitArgs, RoutingArgs
from deployments.http.errors import BodyTooLarge, BodyTooSlow, from_validation
from deployments.http.requests import AnyRequest, ChatRequest, CompletionRequest, routed, signed_64
from deployments.observe import tracing
from dlp_core.decision import Decision, RoutingOptions
from dlp_core.engine.request import Sampling
from dlp_core.errors import InvalidRequest, RequestAborted
from dlp_core.generation.messages import GenerationRequest

Body = TypeVar("Body", bound=BaseModel)


BODY_GRACE_S = 5.0
"""A body may be late by this: a network's hiccup, a client's garbage collection."""


async def read_json(request: Request, limits: LimitArgs) -> object:
    """Read the body as JSON.

    Raises BodyTooLarge before holding much more than the limit, BodyTooSlow, InvalidRequest if the body is not JSON,
    and RequestAborted if the client leaves.
    """
    body = await _read_body(request, limits)
    try:
        return from_json(body, allow_inf_nan=True)  # the field's validation rejects these by name
    except ValueError as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from error


async def _read_body(request: Request, limits: LimitArgs) -> bytes:
    limit = limits.max_body_bytes
    too_large = BodyTooLarge(f"the request body is larger than {limit} bytes; send less")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        async with asyncio.timeout_at(_due(began, 0, limits)) as deadline:
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
                deadline.reschedule(_due(began, len(body), limits))
    except ClientDisconnect:
        raise RequestAborted("the client left before its request was complete") from None
    except TimeoutError:
        raise BodyTooSlow(
            f"{len(body)} bytes of the request body arrived in {clock() - began:.0f} s; a body takes at most "
            f"{limits.body_timeout_s:g} s, at {limits.min_body_bytes_per_s} bytes a second or more"
        ) from None
    return bytes(body)


def _due(began: float, received: int, limits: LimitArgs) -> float:
    """When more must have arrived."""
    rate = limits.min_body_bytes_per_s
    return began + min(limits.body_timeout_s, BODY_GRACE_S + received / rate if rate else limits.body_timeout_s)


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
    granularity = options.granularity or routing.granularity
    return RoutingOptions(
        model=body.model,
        top_p=routing.top_p if options.top_p is None else options.top_p,
        max_adapters=max_adapters,
        weights=options.weights or routing.weights,
        exact_weights=options.exact_weights,
        min_confidence=routing.min_confidence if options.min_confidence is None else options.min_confidence,
        limit=allowed,
        activation=options.activation or routing.activation,
        by_sentence=granularity != "request",
        by_task=granularity == "task",
        adapters=None if explicit is None else tuple((part.name, part.weight) for part in explicit),
        fallback=routing.fallback,
    )


def generations_of(
    body: ChatRequest | CompletionRequest, decisions: Sequence[Decision], request_id: str, salt: str
) -> list[GenerationRequest]:
    """One request per choice: `n` for each prompt, in order. With a seed the choices of a prompt are reproducible, yet
    differ from each other. `salt`: see deployments.http.sharing."""
    sampling = body.sampling
    tools = body.offered if isinstance(body, ChatRequest) else None
    return [
        GenerationRequest(
            request_id=f"{request_id}-{number * body.n + index}",
            bank=decision.bank,
            mix=decision.mix,
            source=source,
            sampling=_sampling_for_choice(sampling, index),
            stop=tuple(body.stop),
            echo=isinstance(body, CompletionRequest) and body.echo,
            prompt_only=body.requested_tokens == 0,
            add_special_tokens=body.add_special_tokens,
            tools=tools,
            salt=salt,
            stream=body.stream,
            activation=decision.options.activation,
            by_sentence=decision.options if decision.by_sentence else None,
            trace=tracing.carried(),
        )
        for number, (source, decision) in enumerate(zip(body.sources, decisions, strict=True))
        for index in range(body.n)
    ]


def _sampling_for_choice(sampling: Sampling, index: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=signed_64(sampling.seed + index))
