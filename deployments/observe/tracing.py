"""OpenTelemetry spans of a request: HTTP server, routing, generation, adapter loads. Off by default.

    POST /v1/chat/completions   ingress: FastAPI's server span, which continues the caller's `traceparent`
    ├── route                   ingress, and under it `route` in a router replica
    └── generate                backbone replica
        └── adapter load        one per tier an adapter was loaded into: disk, host, device

OTEL_TRACES_EXPORTER selects `otlp`, `console` or `none`, the default. The other settings are OpenTelemetry's as well
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and others). The context is passed between replicas
as W3C headers. Spans are created only inside a trace that an HTTP request started, so nothing is traced twice and an
unsampled request stays unsampled everywhere. No attribute ever contains text of a prompt or a completion.
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
    """Export this process's spans as the environment configures. Problems are logged and stop nothing."""
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "none").strip().lower() or "none"
    if kind == "none" or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return  # off, or this process has a provider already
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    attributes = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": SERVICE}
    provider = TracerProvider(resource=Resource.create(attributes))
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
    """The current context, to pass to another process; None outside a trace."""
    if not trace.get_current_span().get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


@contextmanager
def opened(name: str, parent: Carrier | None = None) -> Iterator[Span]:
    """A span that ends with the block but is not current inside it, so that a generator may hold it while others run.

    Its parent is the `carried` context, or else the current span; without either the span records nothing.
    """
    parent_context = None if parent is None else propagate.extract(parent)
    if not trace.get_current_span(parent_context).get_span_context().is_valid:
        yield INVALID_SPAN
        return
    span = _tracer.start_span(name, parent_context, SpanKind.INTERNAL if parent is None else SpanKind.SERVER)
    try:
        yield span
    except Exception as error:
        failed(span, error)
        raise
    finally:
        span.end()


@contextmanager
def span(name: str, parent: Carrier | None = None) -> Iterator[Span]:
    """Like `opened`, but current inside the block. Not for a block that yields to other code."""
    with opened(name, parent) as active, trace.use_span(active, record_exception=False, set_status_on_exception=False):
        yield active


def generation(
    span: Span, request: GenerationRequest, pieces: AsyncGenerator[Piece, None]
) -> AsyncGenerator[Piece, None]:
    """The pieces of one completion. Its span records the mix, the first token and the finish reason."""
    return _observed(span, request, pieces) if span.is_recording() else pieces


async def _observed(
    span: Span, request: GenerationRequest, pieces: AsyncGenerator[Piece, None]
) -> AsyncGenerator[Piece, None]:
    """Forward `pieces` and run their code with `span` as the current span. Always closes them."""
    span.set_attributes({"dlp.request_id": request.request_id, "dlp.bank": request.bank, "dlp.mix": str(request.mix)})
    span_context = trace.set_span_in_context(span)
    began, first = time.perf_counter(), True
    async with aclosing(pieces):
        while True:
            token = context.attach(span_context)
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
    """Mark a span with the error's code. Its message is left out, as it may quote the request."""
    code = error.code if isinstance(error, DLPError) else type(error).__name__
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR, code)


def decision_attributes(decision: Decision) -> dict[str, Any]:
    attributes = {
        "dlp.bank": decision.bank,
        "dlp.router": decision.router,
        "dlp.mix": str(decision.mix),
        "dlp.recipes": decision.mix.recipes or None,
        "dlp.reason": decision.reason,
        "dlp.confidence": decision.confidence,
    }
    return {key: value for key, value in attributes.items() if value is not None}


def adapter_loaded(adapter: str, tier: str, seconds: float, size: int) -> None:
    """Record a load of `size` bytes that just ended, as a child of the current span."""
    if not trace.get_current_span().is_recording():
        return
    end = time.time_ns()
    attributes: dict[str, Any] = {"dlp.adapter": adapter, "dlp.tier": tier, "dlp.adapter.bytes": size}
    _tracer.start_span("adapter load", attributes=attributes, start_time=end - int(seconds * 1e9)).end(end)
