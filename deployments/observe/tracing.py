"""OpenTelemetry spans of a request: HTTP server, routing, generation, adapter loads. Off unless the environment says.

    POST /v1/chat/completions   ingress: FastAPI's own server span, which continues the caller's `traceparent`
    ├── route                   ingress, and under it `route` in a router replica
    └── generate                backbone replica
        └── adapter load        one for each tier an adapter had to be brought to: disk, host, device

OTEL_TRACES_EXPORTER is the switch: `otlp`, `console` or `none`, the default. The rest is OpenTelemetry's as well
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and others). Between replicas the context travels
by value, as the W3C headers. A span is only made inside a trace that an HTTP request began, so nothing is traced twice
and what was not sampled stays so everywhere. No attribute ever holds text of a prompt or a completion.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode

from dlp_core.decision import Decision
from dlp_core.errors import DLPError
from dlp_core.generation.messages import Finished, GenerationRequest, Piece

log = logging.getLogger("ray.serve")

Carrier = Mapping[str, str]
"""A trace context as HTTP headers (`traceparent`, ...)."""

SERVICE = "dlp"
_tracer = trace.get_tracer("dlp")


def start() -> None:
    """Exports this process's spans to where the environment says. A trouble with that is logged and stops nothing."""
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "none").strip().lower() or "none"
    if kind == "none" or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return  # off, or somebody in this process has seen to it
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": SERVICE}
    provider = TracerProvider(resource=Resource.create(named))
    match kind:
        case "otlp":
            try:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            except ImportError:
                log.error("OTEL_TRACES_EXPORTER is otlp; nothing is traced without `pip install 'dlp-serve[otel]'`")
                return
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        case "console":
            provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
        case _:
            log.error("OTEL_TRACES_EXPORTER is %r; nothing is traced: use otlp, console or none", kind)
            return
    trace.set_tracer_provider(provider)


def carried() -> Carrier | None:
    """The current context, to be handed to another process; None outside a trace."""
    if not trace.get_current_span().get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


@contextmanager
def opened(name: str, parent: Carrier | None = None) -> Iterator[Span]:
    """A span that ends with the block, and is not current inside it: a generator may hold it while others run.

    Its parent is what was `carried` here, or else the current span; without either it is a span that records nothing.
    """
    above = None if parent is None else propagate.extract(parent)
    if not trace.get_current_span(above).get_span_context().is_valid:
        yield INVALID_SPAN
        return
    span = _tracer.start_span(name, above, SpanKind.INTERNAL if parent is None else SpanKind.SERVER)
    try:
        yield span
    except Exception as error:
        failed(span, error)
        raise
    finally:
        span.end()


@contextmanager
def span(name: str, parent: Carrier | None = None) -> Iterator[Span]:
    """Like `opened`, and current inside the block. Not for a block that yields to others."""
    with opened(name, parent) as found, trace.use_span(found, record_exception=False, set_status_on_exception=False):
        yield found


def generation(
    span: Span, request: GenerationRequest, pieces: AsyncGenerator[Piece, None]
) -> AsyncGenerator[Piece, None]:
    """The pieces of one completion under its span, which is told the mix, the first token and how it ended."""
    return _observed(span, request, pieces) if span.is_recording() else pieces


async def _observed(
    span: Span, request: GenerationRequest, pieces: AsyncGenerator[Piece, None]
) -> AsyncGenerator[Piece, None]:
    """Passes `pieces` on, whose own code runs with `span` as the current one. Closes them however this ends."""
    span.set_attributes({"dlp.request_id": request.request_id, "dlp.bank": request.bank, "dlp.mix": str(request.mix)})
    inside = trace.set_span_in_context(span)
    began, first = time.perf_counter(), True
    async with aclosing(pieces):
        while True:
            token = context.attach(inside)
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
            finally:
                context.detach(token)
            if isinstance(piece, Finished):
                span.set_attribute("gen_ai.response.finish_reasons", [piece.finish_reason])
                span.set_attribute("gen_ai.usage.input_tokens", piece.prompt_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", piece.completion_tokens)
            elif first:
                span.add_event("first token")
                span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - began)
                first = False
            yield piece


def failed(span: Span, error: Exception) -> None:
    """Marks a span by the error's code. Not by its message: that may quote the request."""
    code = error.code if isinstance(error, DLPError) else type(error).__name__
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR, code)


def decision_attributes(decision: Decision) -> dict[str, Any]:
    found = {
        "dlp.bank": decision.bank,
        "dlp.router": decision.router,
        "dlp.mix": str(decision.mix),
        "dlp.reason": decision.reason,
        "dlp.confidence": decision.confidence,
    }
    return {key: value for key, value in found.items() if value is not None}


def adapter_loaded(adapter: str, tier: str, seconds: float, size: int) -> None:
    """A span of a load that just ended, of `size` bytes, under the current one."""
    if not trace.get_current_span().is_recording():
        return
    end = time.time_ns()
    attributes: dict[str, Any] = {"dlp.adapter": adapter, "dlp.tier": tier, "dlp.adapter.bytes": size}
    _tracer.start_span("adapter load", attributes=attributes, start_time=end - int(seconds * 1e9)).end(end)
