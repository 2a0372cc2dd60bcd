"""Spans without a cluster: what is current where, what is recorded, what is not. The whole chain is
tests/cluster/test_observe.py's business."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import AsyncGenerator, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.observe import tracing
from dlp_core.engine.request import Sampling
from dlp_core.errors import AdapterUnavailable
from dlp_core.generation.messages import Delta, Finished, GenerationRequest
from dlp_core.mix import EMPTY_MIX, Mix, Span

SAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
NOT_SAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
REQUEST = GenerationRequest("id", "one", Mix.of({"sql": 1.0}), "the zebra", Sampling())


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def test_the_context_travels_by_value(spans: InMemorySpanExporter) -> None:
    with tracing.span("route", SAMPLED):
        carried = tracing.carried()
    with tracing.span("route", carried):
        pass
    ingress, router = spans.get_finished_spans()
    assert ingress.context.trace_id == router.context.trace_id == int("0af7651916cd43dd8448eb211c80319c", 16)
    assert router.parent.span_id == ingress.context.span_id
    assert ingress.parent.span_id == int("b7ad6b7169203331", 16)


def test_without_a_trace_nothing_is_recorded(spans: InMemorySpanExporter) -> None:
    with tracing.span("route"), tracing.opened("generate"):
        tracing.adapter_loaded("sql@1", "device", 0.1, 100)
        assert tracing.carried() is None
    assert spans.get_finished_spans() == ()


def test_what_was_not_sampled_stays_so(spans: InMemorySpanExporter) -> None:
    with tracing.span("route", NOT_SAMPLED):
        carried = tracing.carried()
        assert carried is not None
        with tracing.span("route", carried):
            tracing.adapter_loaded("sql@1", "device", 0.1, 100)
    assert carried["traceparent"].endswith("-00")
    assert spans.get_finished_spans() == ()


async def pieces(seen: list[str]) -> AsyncGenerator[Delta | Finished, None]:
    try:
        seen.append(trace.get_current_span().name)  # type: ignore[attr-defined]
        tracing.adapter_loaded("sql@1", "device", 0.25, 100)
        yield Delta("zebra ")
        seen.append(trace.get_current_span().name)  # type: ignore[attr-defined]
        yield Finished("stop", 3, 5, (Span(0, 8, EMPTY_MIX),))
    finally:
        seen.append("closed")


async def test_a_generation_runs_under_its_span_and_its_consumer_does_not(spans: InMemorySpanExporter) -> None:
    seen: list[str] = []
    began = time.perf_counter()
    with tracing.opened("generate", SAMPLED) as span:
        async for _ in tracing.generation(span, REQUEST, pieces(seen)):
            assert not trace.get_current_span().get_span_context().is_valid
    elapsed = time.perf_counter() - began
    assert seen == ["generate", "generate", "closed"]
    load, generate = spans.get_finished_spans()
    assert load.parent.span_id == generate.context.span_id
    assert load.attributes == {"dlp.adapter": "sql@1", "dlp.tier": "device", "dlp.adapter.bytes": 100}
    assert load.end_time - load.start_time == 250_000_000
    assert [event.name for event in generate.events] == ["first token"]
    told = dict(generate.attributes)
    assert 0 < told.pop("gen_ai.response.time_to_first_chunk") < elapsed
    assert told == {
        "dlp.request_id": "id",
        "dlp.bank": "one",
        "dlp.mix": "sql=1.00",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
    }
    assert "zebra" not in generate.to_json() + load.to_json()


async def test_a_generation_that_is_left_is_closed(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    with tracing.opened("generate", SAMPLED) as span:
        left = tracing.generation(span, REQUEST, pieces(seen))
        await anext(left)
        await left.aclose()
    assert seen == ["generate", "closed"]
    assert len(spans.get_finished_spans()) == 2
    assert caplog.records == []


def test_an_error_is_told_by_its_code(spans: InMemorySpanExporter) -> None:
    for error in (AdapterUnavailable("the zebra"), KeyError("zebra")):
        with pytest.raises(type(error)), tracing.span("generate", SAMPLED):
            raise error
    found = spans.get_finished_spans()
    assert [span.attributes["error.type"] for span in found] == ["adapter_unavailable", "KeyError"]
    assert not any("zebra" in span.to_json() for span in found)


def test_off_means_nothing_is_wrapped() -> None:
    made = pieces([])
    with tracing.opened("generate", None) as span:
        assert tracing.generation(span, REQUEST, made) is made


@pytest.mark.parametrize(("kind", "says"), [("jaeger", "otlp, console or none"), ("otlp", r"dlp-serve\[otel\]")])
def test_a_setting_that_cannot_be_met_is_logged_and_stops_nothing(
    kind: str, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", kind)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    tracing.start()
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert all(re.search(says, record.getMessage()) for record in caplog.records)
    assert caplog.records
