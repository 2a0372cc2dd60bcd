"""What one client may take: time for its body, and places at once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from deployments.args import LimitArgs, RoutingArgs
from deployments.http import input as http_input
from deployments.http.access import Access
from deployments.http.admission import Admission, TooManyRequests
from deployments.http.app import create_app
from deployments.http.errors import error_response
from dlp_core.errors import StepFailed
from tests.support.echo import EchoService

BODY = json.dumps({"model": "auto", "prompt": "sql now"}).encode()
KEYS = {"keys": [{"name": "a", "key": "key-of-team-a-0123456789"}, {"name": "b", "key": "key-of-team-b-0123456789"}]}


async def post(app: Any, body: AsyncIterator[bytes | None], *, key: str | None = None) -> tuple[int, dict[str, Any]]:
    """Send a body as it comes, one chunk a message; None is the client's leaving."""
    sent: list[Message] = []
    headers = [(b"content-type", b"application/json")]
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip

    async def receive() -> Message:
        async for chunk in body:
            if chunk is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(answer) if answer else {}


async def chunks(*parts: bytes | None) -> AsyncIterator[bytes | None]:
    for part in parts:
        yield part


def application(*, access: Access | None = None, service: EchoService | None = None, **limits: Any) -> Any:
    return create_app(
        service or EchoService(),
        routing=RoutingArgs(),
        limits=LimitArgs(request_timeout_s=60, **limits),
        access=access or Access(),
    )


async def test_a_body_that_never_ends_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_input, "BODY_GRACE_S", 0.05)

    async def stalled() -> AsyncIterator[bytes]:
        yield BODY[:10]
        await asyncio.Event().wait()

    status, answer = await post(application(), stalled())
    assert (status, answer["error"]["code"]) == (408, "request_timeout")
    assert "10 bytes of the request body arrived" in answer["error"]["message"]


async def test_a_trickle_is_told_so_at_the_latest_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes keep coming, and more than the rate asks for."""

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 8
            await asyncio.sleep(0.01)

    status, answer = await post(application(body_timeout_s=0.2, min_body_bytes_per_s=1), trickle())
    assert (status, answer["error"]["code"]) == (408, "request_timeout")


async def test_a_body_in_pieces_is_read() -> None:
    status, answer = await post(application(), chunks(*(BODY[n : n + 1] for n in range(len(BODY)))))
    assert status == 200
    assert answer["choices"][0]["text"]


async def test_a_client_that_leaves_within_its_body_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ray.serve"):
        await post(application(), chunks(BODY[:10], None))
    assert [(record.levelname, getattr(record, "status", None)) for record in caplog.records] == [("INFO", 499)]


async def test_a_key_has_so_many_places_and_others_keep_theirs(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    a, b = (entry["key"] for entry in KEYS["keys"])
    app = application(access=Access(keys_file=tmp_path / "keys.json"), max_requests_per_key=2)
    go_on = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield BODY[:5]
        await go_on.wait()
        yield BODY[5:]

    held = [asyncio.create_task(post(app, waiting(), key=a)) for _ in range(2)]
    await asyncio.sleep(0.05)
    status, answer = await post(app, chunks(BODY), key=a)
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (429, "too_many_requests", "rate_limit_error")
    assert "'a' has 2 requests" in answer["error"]["message"]
    assert (await post(app, chunks(BODY), key=b))[0] == 200
    assert (await post(app, chunks(BODY), key="no key of anybody's"))[0] == 401
    go_on.set()
    assert [status for status, _ in await asyncio.gather(*held)] == [200, 200]
    for _ in range(5):
        assert (await post(app, chunks(BODY), key=a))[0] == 200
        assert (await post(app, chunks(b"{"), key=a))[0] == 400
        await post(app, chunks(BODY[:3], None), key=a)


async def test_without_keys_nobody_is_counted() -> None:
    app = application(max_requests_per_key=1)
    answers = await asyncio.gather(*(post(app, chunks(BODY)) for _ in range(4)))
    assert [status for status, _ in answers] == [200] * 4


def test_admission_forgets_who_has_left() -> None:
    admission = Admission(1)
    admission.enter("a")
    with pytest.raises(TooManyRequests):
        admission.enter("a")
    admission.leave("a")
    assert not admission._running
    admission.enter("a")


def test_a_request_that_ended_a_replica_is_not_to_be_sent_again() -> None:
    assert error_response(StepFailed("x")).headers["x-should-retry"] == "false"
    assert error_response(StepFailed("x")).status_code == 500
