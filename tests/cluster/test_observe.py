"""What an operator sees of the application on a Ray cluster: log lines, request ids, traces, tiers in the metrics.

The collector is an OTLP receiver in this process. The tests run in order: the first request for an adapter loads it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from deployments.client.activity import Activity, Reading
from examples.tiny.build import TASKS
from tests.support.application import Application, get, running
from tests.support.waiting import HANG_S, wait_for

QUEUE = 2
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Collector:
    """Takes spans as a collector does: protobuf over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        found = self.spans

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    service = {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"]
                    assert service == "dlp"
                    for scope in resource.scope_spans:
                        found.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def trace(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def app(collector: Collector, folder: Path) -> Iterator[Application]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_TRACES_EXPORTER", "otlp")
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with running(folder, queue=QUEUE) as found:
            yield found


def post(app: Application, path: str = "chat/completions", *, headers: Any = None, **changes: Any) -> httpx.Response:
    body: dict[str, Any] = {"model": "auto", "max_tokens": 8}
    if path == "chat/completions":
        body["messages"] = [{"role": "user", "content": TASKS["cron"].format(7)}]
    return httpx.post(f"{app.url}/v1/{path}", json=body | changes, headers=headers, timeout=HANG_S)


def lines_of(deployment: str) -> list[dict[str, Any]]:
    from ray.serve._private.logging_utils import get_serve_logs_dir

    [file] = Path(get_serve_logs_dir()).glob(f"replica_dlp_{deployment}_*.log")
    return [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]


def requests_of(request_id: str) -> list[dict[str, Any]]:
    return [line for line in lines_of("Ingress") if line.get("request_id") == request_id and "total_seconds" in line]


def line_of(request_id: str) -> dict[str, Any]:
    """The one line of a request, which is written after its last byte was sent."""
    wait_for(lambda: requests_of(request_id), f"line of {request_id}")
    [line] = requests_of(request_id)
    return line


def attributes_of(span: Span) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_request_is_one_trace_from_its_caller_to_the_adapter_load(app: Application, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "traced-1"}
    answer = post(app, stream=True, headers=headers)
    assert answer.status_code == 200
    wait_for(lambda: len(collector.trace(TRACE)) >= 7, "spans")
    spans = collector.trace(TRACE)
    names = {span.span_id: span.name for span in spans} | {bytes.fromhex(CALLER): "caller"}
    tiers = {span.span_id: attributes_of(span).get("dlp.tier", "") for span in spans}
    chain = sorted((names[span.parent_span_id], span.name, tiers[span.span_id]) for span in spans)
    assert chain == [
        ("POST /v1/chat/completions", "generate", ""),
        ("POST /v1/chat/completions", "route", ""),
        ("caller", "POST /v1/chat/completions", ""),
        ("generate", "adapter load", "device"),
        ("generate", "adapter load", "disk"),
        ("generate", "adapter load", "host"),
        ("route", "route", ""),
    ]
    server = attributes_of(next(span for span in spans if names[span.parent_span_id] == "caller"))
    assert (server["http.request.method"], server["http.route"]) == ("POST", "/v1/chat/completions")
    assert (server["http.response.status_code"], server["gen_ai.usage.output_tokens"]) == (200, 8)
    assert (server["gen_ai.request.model"], server["dlp.request_id"]) == ("auto", "traced-1")
    assert server["dlp.mix"].startswith("cron=")
    load = attributes_of(next(span for span in spans if tiers[span.span_id] == "disk"))
    assert load["dlp.adapter"].startswith("cron@")
    assert load["dlp.adapter.bytes"] > 100
    generate = next(span for span in spans if span.name == "generate")
    assert attributes_of(generate)["dlp.request_id"].startswith("traced-1/chatcmpl-")
    assert [event.name for event in generate.events] == ["first token"]
    assert line_of("traced-1")["trace_id"] == TRACE


def test_no_span_says_what_was_asked_or_answered(collector: Collector) -> None:
    told = "".join(map(str, collector.spans))
    assert "POST /v1/chat/completions" in told
    assert "schedule" not in told
    assert "midnight" not in told


def test_a_trace_begins_here_without_a_caller_and_never_where_the_caller_does_not_sample(
    app: Application, collector: Collector
) -> None:
    """What is not to be traced comes first: its spans would be sent before the others."""
    before = len(collector.spans)
    post(app, headers={"traceparent": f"00-{'1' * 32}-{CALLER}-00"})
    assert get(app, "/health").status_code == 200
    post(app, headers={"x-request-id": "fresh-1"})
    trace_id = line_of("fresh-1")["trace_id"]
    wait_for(lambda: len(collector.trace(trace_id)) == 4, "spans")
    assert len(collector.spans) == before + 4
    roots = [span for span in collector.trace(trace_id) if not span.parent_span_id]
    assert [span.name for span in roots] == ["POST /v1/chat/completions"]


def test_each_request_is_one_flat_line(app: Application) -> None:
    began = time.perf_counter()
    post(app, headers={"x-request-id": "served-1"})
    line = line_of("served-1")
    elapsed = time.perf_counter() - began
    assert (line["route"], line["model"], line["caller"]) == ("/v1/chat/completions", "auto", "anybody")
    assert (line["status"], line["error_code"], line["finish_reasons"]) == (200, None, ["length"])
    assert (line["bank"], line["reason"], line["completion_tokens"]) == ("one", "routed", 8)
    assert sum(part["weight"] for part in line["mix"]) == pytest.approx(1)
    assert 0 < line["decide_seconds"] < line["first_token_seconds"] <= line["total_seconds"] < elapsed
    assert not {"job_id", "worker_id", "task_name", "skip_context_filter"} & set(line)
    assert "schedule" not in json.dumps(line)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"max_tokens": -1}, 400, "invalid_value"),
        ({"model": "nope"}, 404, "model_not_found"),
        ({"max_tokens": 5000}, 400, "context_length_exceeded"),
    ],
)
def test_a_refusal_is_logged_and_has_its_id(
    app: Application, changes: dict[str, Any], status: int, code: str, *, stream: bool
) -> None:
    request_id = f"refused-{status}-{code}-{stream}"
    answer = post(app, stream=stream, headers={"x-request-id": request_id}, **changes)
    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, [request_id])
    line = line_of(request_id)
    # pydantic refused the first body, so nothing of it is known
    assert (line["status"], line["error_code"], line["stream"]) == (
        status,
        code,
        stream and changes != {"max_tokens": -1},
    )


def test_a_full_application_is_logged_and_has_its_ids(app: Application) -> None:
    answers: dict[str, httpx.Response] = {}

    def one(name: str) -> None:
        answers[name] = post(app, max_tokens=300, stream=True, headers={"x-request-id": name})

    threads = [threading.Thread(target=one, args=(f"flood-{number}",)) for number in range(6 * QUEUE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = {name: answer.status_code for name, answer in answers.items()}
    assert {200, 429} == set(statuses.values())
    for name, answer in answers.items():
        assert answer.headers.get_list("x-request-id") == [name]
        assert (line_of(name)["status"], line_of(name)["error_code"]) == (
            answer.status_code, None if answer.status_code == 200 else "queue_full"
        )  # fmt: skip


def test_a_client_that_goes_away_is_logged(app: Application) -> None:
    body = {"model": "cron", "prompt": "the user", "max_tokens": 3000, "stream": True}
    headers = {"x-request-id": "gone-1"}
    with httpx.stream("POST", f"{app.url}/v1/completions", json=body, headers=headers, timeout=HANG_S) as stream:
        next(stream.iter_lines())
        assert stream.headers.get_list("x-request-id") == ["gone-1"]
    line = line_of("gone-1")
    assert (line["status"], line["error_code"], line["finish_reasons"]) == (499, "client_disconnected", [])
    assert line["first_token_seconds"] > 0


def test_a_hostile_id_is_bounded_where_we_write_it(app: Application) -> None:
    post(app, headers=[(b"x-request-id", b"long-" + b"x" * 5000)])
    assert line_of(("long-" + "x" * 128)[:128])["status"] == 200
    post(app, headers=[(b"x-request-id", "hostile-é\t".encode() + b'{"a"')])
    assert line_of('hostile-___{"a"')["status"] == 200


def test_a_load_that_fails_is_logged_with_the_request(app: Application) -> None:
    app.server.stop()
    try:
        answer = post(app, model="dates", headers={"x-request-id": "unlucky-1"})
    finally:
        app.server.start()
    assert (answer.status_code, line_of("unlucky-1")["error_code"]) == (503, "adapter_unavailable")
    [line] = [line for line in lines_of("FusedBackbone") if "not loaded" in line["message"]]
    assert line["request_id"] == "unlucky-1"
    assert "dates@" in line["message"]


def test_metrics_of_all_replicas_are_on_the_serving_port(app: Application) -> None:
    def reading() -> Reading:
        answer = get(app, "/metrics")
        assert answer.status_code == 200
        return Reading.of(answer.text, 0.0)

    def routed() -> float:
        return reading().total("dlp_requests_total", route="/v1/route", status="200", error_code="none")

    everywhere = {"FusedBackbone": 1, "Ingress": 1, "Router": 1}
    wait_for(lambda: Activity.of(reading()).replicas == everywhere, "all replicas")
    assert (reading().missing_nodes, routed()) == (0, 0)
    for asked in range(1, 4):
        body = {"text": TASKS["cron"].format(asked)}
        assert httpx.post(f"{app.url}/v1/route", json=body, timeout=HANG_S).status_code == 200
    wait_for(lambda: routed() == 3, "three requests")


def test_the_metrics_know_the_tiers(app: Application) -> None:
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]

    def missing() -> set[str]:
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=HANG_S).text.splitlines()
        return {
            f"{name} {tier}"
            for name in ("dlp_adapters_resident", "dlp_adapter_load_seconds_count")
            for tier in ("disk", "host", "device")
            if not any(line.startswith(f"ray_{name}{{") and f'tier="{tier}"' in line for line in lines)
        }

    wait_for(lambda: not missing(), "tiers")
