"""One line for each request, whatever becomes of it: written as Serve's JSON formatter writes it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._common.formatters import JSONFormatter
from starlette.testclient import TestClient

from deployments.args import LogArgs, RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from deployments.http.request_log import log, safe_id
from dlp_core.errors import EngineFailed, EngineFull, PromptTooLong
from tests.support.echo import LIMITS, EchoService, chat
from tests.support.waiting import HANG_S, async_wait_for

SECRET = "sql about the merger with zebra"
"""The prompt, which the service repeats as its completion."""


class Lines(logging.Handler):
    """What a replica's log file would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: list[str] = []
        self.setFormatter(JSONFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.raw.append(self.format(record))

    @property
    def only(self) -> dict[str, Any]:
        [line] = self.raw
        found: dict[str, Any] = json.loads(line)
        return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    lines = Lines()
    monkeypatch.setattr(log, "level", logging.INFO)
    log.addHandler(lines)
    yield lines
    log.removeHandler(lines)


@pytest.fixture
def service() -> EchoService:
    return EchoService()


def client_of(service: EchoService, **settings: Any) -> TestClient:
    api = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access(), **settings)
    return TestClient(api, raise_server_exceptions=False)


@pytest.fixture
def http(service: EchoService) -> TestClient:
    return client_of(service)


def ask(http: TestClient, text: str = SECRET, **changes: Any) -> Any:
    return http.post("/v1/chat/completions", json=chat(text, **changes))


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_served(http: TestClient, lines: Lines, *, stream: bool) -> None:
    began = time.perf_counter()
    ask(http, stream=stream, n=2, model="auto")
    elapsed = time.perf_counter() - began
    line = lines.only
    times = {key: line.pop(key) for key in ("total_seconds", "decide_seconds", "first_token_seconds")}
    assert 0 < times["decide_seconds"] <= times["first_token_seconds"] <= times["total_seconds"] < elapsed
    assert line.pop("message") == "/v1/chat/completions 200 stop+stop"
    assert len(line.pop("request_id")) == 32
    for serves_own in ("asctime", "levelname", "filename", "lineno", "process", "timestamp_ns", "skip_context_filter"):
        line.pop(serves_own, None)
    assert line == {
        "trace_id": None,
        "caller": "anybody",
        "route": "/v1/chat/completions",
        "model": "auto",
        "stream": stream,
        "n": 2,
        "bank": "b1",
        "bank_role": "serving",
        "router": "r1",
        "mix": [{"adapter": "sql", "weight": 1.0}],
        "reason": "routed",
        "confidence": 1.0,
        "status": 200,
        "error_code": None,
        "finish_reasons": ["stop", "stop"],
        "prompt_tokens": 7,
        "completion_tokens": 12,
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PromptTooLong("too long"), 400, "context_length_exceeded"),
        (EngineFull("full", retry_after=1.0), 429, "queue_full"),
        (EngineFailed("gone"), 503, "engine_failed"),
        (RuntimeError(SECRET), 500, "internal_error"),
    ],
)
def test_a_refusal_has_its_status_and_code(
    service: EchoService, lines: Lines, error: Exception, status: int, code: str, *, stream: bool
) -> None:
    service.fail = error
    assert ask(client_of(service), stream=stream).status_code == status
    line = lines.only
    assert (line["status"], line["error_code"], line["stream"]) == (status, code, stream)
    assert (line["first_token_seconds"], line["prompt_tokens"], line["finish_reasons"]) == (None, None, [])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_value"),
        (json.dumps(chat(max_tokens=-1)).encode(), 400, "invalid_value"),
        (json.dumps(chat("x" * 30_000)).encode(), 413, "request_too_large"),
    ],
)
def test_a_body_that_makes_no_sense(http: TestClient, lines: Lines, body: bytes, status: int, code: str) -> None:
    assert http.post("/v1/chat/completions", content=body).status_code == status
    line = lines.only
    assert (line["status"], line["error_code"], line["model"], line["mix"]) == (status, code, None, None)


def test_a_model_that_does_not_exist_is_named(http: TestClient, lines: Lines) -> None:
    assert ask(http, model="zoology" + "y" * 10_000).status_code == 404
    line = lines.only
    assert (line["error_code"], line["mix"]) == ("model_not_found", None)
    assert line["model"].startswith("zoology")
    assert len(line["model"]) == 256


def test_a_wrong_method_and_a_missing_bank(http: TestClient, service: EchoService, lines: Lines) -> None:
    assert http.get("/v1/completions").status_code == 405
    service.manifest = None
    assert ask(http).status_code == 503
    assert [json.loads(line)["error_code"] for line in lines.raw] == ["method_not_allowed", "store_unavailable"]


def test_a_key_is_told_by_its_name(service: EchoService, lines: Lines, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: [{name: team-a, key: 0123456789abcdef}]")
    api = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access(keys_file=keys))
    http = TestClient(api)
    http.post("/v1/chat/completions", json=chat(), headers={"authorization": "Bearer 0123456789abcdef"})
    http.post("/v1/chat/completions", json=chat(), headers={"authorization": "Bearer fedcba9876543210"})
    known, unknown = map(json.loads, lines.raw)
    assert (known["caller"], known["status"]) == ("team-a", 200)
    assert (unknown["caller"], unknown["status"], unknown["error_code"]) == (None, 401, "invalid_api_key")
    assert not any(key in line for line in lines.raw for key in ("0123456789abcdef", "fedcba9876543210"))


def test_an_error_after_the_first_token_is_an_outcome_of_its_own(
    http: TestClient, service: EchoService, lines: Lines
) -> None:
    service.fail, service.fail_after = EngineFailed("gone"), 1
    ask(http, stream=True)
    line = lines.only
    assert (line["status"], line["error_code"], line["finish_reasons"]) == (200, "engine_failed", [])
    assert line["first_token_seconds"] > 0


@pytest.mark.parametrize(("pieces", "stream", "status"), [(0, False, 504), (0, True, 504), (1, True, 200)])
def test_a_request_out_of_time(
    http: TestClient, service: EchoService, lines: Lines, pieces: int, status: int, *, stream: bool
) -> None:
    service.stall_after, service.clock_leaps = pieces, True
    ask(http, stream=stream)
    assert (lines.only["status"], lines.only["error_code"]) == (status, "deadline_exceeded")


async def disconnected(service: EchoService, *, after: bytes, cancelled: bool = False, **changes: Any) -> None:
    """A client that goes away when it has seen `after`, as the server tells it: by a message or by cancelling."""
    api = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access())
    gone = asyncio.Event()
    messages = iter([{"type": "http.request", "body": json.dumps(chat(SECRET, **changes)).encode()}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await asyncio.Event().wait() if cancelled else await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if after in message.get("body", b""):
            gone.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    running = asyncio.create_task(api(scope, receive, send))
    if cancelled:
        await (gone.wait() if after else async_wait_for(lambda: service.asked, "request"))
        running.cancel()
    await asyncio.wait([running], timeout=HANG_S)
    assert running.done()


async def test_a_client_that_goes_away_in_the_middle_of_a_stream(service: EchoService, lines: Lines) -> None:
    service.stall_after = 2
    await disconnected(service, after=b'"about "', stream=True)
    line = lines.only
    assert (line["status"], line["error_code"]) == (499, "client_disconnected")
    assert line["first_token_seconds"] > 0


@pytest.mark.parametrize(("after", "stream"), [(b'"about "', True), (b"", False)])
async def test_a_request_that_serve_cancels(service: EchoService, lines: Lines, after: bytes, *, stream: bool) -> None:
    service.stall_after = 2
    await disconnected(service, after=after, cancelled=True, stream=stream)
    assert (lines.only["status"], lines.only["error_code"]) == (499, "client_disconnected")


def test_route_is_logged_and_the_rest_is_not(http: TestClient, lines: Lines) -> None:
    for path in ("/v1/models", "/v1/bank", "/health", "/nope"):
        http.get(path)
    assert http.post("/v1/route", json={"text": "make sql"}).status_code == 200
    line = lines.only
    assert (line["route"], line["reason"], line["mix"]) == ("/v1/route", "routed", [{"adapter": "sql", "weight": 1.0}])
    assert (line["finish_reasons"], line["completion_tokens"]) == ([], None)


def test_what_was_said_stays_out(http: TestClient, service: EchoService, lines: Lines) -> None:
    ask(http)
    ask(http, stream=True)
    http.post("/v1/completions", json={"model": "auto", "prompt": SECRET})
    http.post("/v1/route", json={"text": SECRET})
    ask(http, temperature=-1)
    service.fail, service.fail_after = RuntimeError(SECRET), 2
    ask(http, stream=True)
    assert len(lines.raw) == 6
    assert not any("zebra" in line or "merger" in line for line in lines.raw)


def test_what_was_said_is_written_when_asked_for(service: EchoService, lines: Lines) -> None:
    http = client_of(service, log=LogArgs(prompts=True))
    ask(http, n=2, stream=True)
    line = lines.only
    assert line["prompt"] == [{"role": "user", "content": SECRET}]
    assert line["completions"] == [f"{SECRET} "] * 2
    lines.raw.clear()
    http.post("/v1/route", json={"text": SECRET})
    assert lines.only["prompt"] == SECRET


def test_the_lines_can_be_switched_off(service: EchoService, lines: Lines) -> None:
    assert ask(client_of(service, log=LogArgs(requests=False))).status_code == 200
    assert lines.raw == []


# --- x-request-id


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"mine-1", "mine-1"),
        (b"x" * 5000, "x" * 128),
        ("café".encode(), "caf__"),
        (b"a\tb c", "a_b_c"),
        (b'{"a": "\\n"}', '{"a":_"\\n"}'),
    ],
)
def test_a_request_id_comes_back_safe_and_once(
    http: TestClient, service: EchoService, lines: Lines, given: bytes, kept: str
) -> None:
    for fail in (None, EngineFull("full", retry_after=1.0), RuntimeError("bug")):
        for stream in (False, True):
            service.fail = fail
            headers = [(b"x-request-id", given)]
            answer = http.post("/v1/chat/completions", json=chat(stream=stream), headers=headers)
            assert answer.headers.get_list("x-request-id") == [kept]
    assert {json.loads(line)["request_id"] for line in lines.raw} == {kept}
    assert all(request.request_id.startswith(f"{kept}/chatcmpl-") for request in service.asked)
    assert len({request.request_id for request in service.asked}) == 6, "unique, though the client repeats its own"


def test_every_answer_has_an_id(http: TestClient) -> None:
    answers = [http.get(path) for path in ("/v1/models", "/nope", "/health")] + [http.post("/v1/route", content=b"{")]
    ids = [answer.headers.get_list("x-request-id") for answer in answers]
    assert all(len(found) == 1 and len(found[0]) == 32 for found in ids)
    assert len({found[0] for found in ids}) == 4


def test_a_server_in_front_answers_with_the_id_itself(service: EchoService, lines: Lines) -> None:
    answer = client_of(service, sets_id_header=False).post(
        "/v1/route", json={"text": "sql"}, headers={"x-request-id": "mine-1"}
    )
    assert "x-request-id" not in answer.headers
    assert lines.only["request_id"] == "mine-1"


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_an_id_there_is_a_new_one(nothing: str | None) -> None:
    assert safe_id(nothing) != safe_id(nothing)
