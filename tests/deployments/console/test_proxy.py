"""What goes on to the server: the page's routes, with the console's credentials and none of the browser's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.console.proxy import ALLOWED, GENERATION
from tests.deployments.console.conftest import Open
from tests.support.http_server import QuietHandler, serving

KEY, TOKEN = "key-of-a-team-1234", "admin-token-of-the-tests"


class Recorder(QuietHandler):
    asked: list[dict[str, Any]]

    def answer(self, body: bytes) -> None:
        if self.path != "/metrics":  # which the console reads by itself
            self.asked.append({"method": self.command, "path": self.path, "body": body, **dict(self.headers.items())})
        headers = {"x_dlp_adapters": "cron=1.00", "set_cookie": "a=b", "content_type": "application/json"}
        self.reply(418, b'{"a": 1}', **headers)


@pytest.fixture
def asked() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def address(asked: list[dict[str, Any]]) -> Iterator[str]:
    with serving(type("Here", (Recorder,), {"asked": asked})) as address:
        yield f"http://{address}"


@pytest.mark.parametrize(
    ("secrets", "sent"),
    [
        ({}, (None, None)),
        ({"key": KEY}, (f"Bearer {KEY}", f"Bearer {KEY}")),
        ({"admin_token": TOKEN}, (f"Bearer {TOKEN}", f"Bearer {TOKEN}")),
        ({"key": KEY, "admin_token": TOKEN}, (f"Bearer {KEY}", f"Bearer {TOKEN}")),
    ],
)
def test_each_route_gets_its_credentials(
    http: Open,
    address: str,
    asked: list[dict[str, Any]],
    secrets: dict[str, str],
    sent: tuple[str | None, str | None],
) -> None:
    console = http(address, **secrets)
    for method, paths in ALLOWED.items():
        for path in paths:
            asked.clear()
            console.request(method, f"/api/{path}", headers={"authorization": "Bearer of-the-browser", "cookie": "a=b"})
            [request] = asked
            assert (request["method"], request["path"]) == (method, f"/{path}")
            assert request.get("authorization") == sent[path not in GENERATION]
            assert "cookie" not in request


def test_body_query_and_answer_pass(http: Open, address: str, asked: list[dict[str, Any]]) -> None:
    answer = http(address).post("/api/v1/chat/completions?x=1", json={"model": "auto"})
    assert (answer.status_code, answer.json(), answer.headers["x-dlp-adapters"]) == (418, {"a": 1}, "cron=1.00")
    assert "set-cookie" not in answer.headers
    assert asked[0]["path"] == "/v1/chat/completions?x=1"
    assert json.loads(asked[0]["body"]) == {"model": "auto"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "v1/chat/completions"),
        ("POST", "v1/bank"),
        ("POST", "v1/load_lora_adapter"),
        ("GET", "docs"),
        ("GET", "v1/bank/../../metrics"),
        ("GET", "/evil.example/v1/bank"),
    ],
)
def test_nothing_else_passes(http: Open, address: str, asked: list[dict[str, Any]], method: str, path: str) -> None:
    answer = http(address, admin_token=TOKEN).request(method, f"/api/{path}")
    assert answer.status_code == 404
    assert asked == []


def test_a_server_that_is_not_there_is_one_line(http: Open) -> None:
    answer = http("http://127.0.0.1:9").get("/api/v1/bank")
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "unreachable"
    assert "http://127.0.0.1:9 does not answer" in answer.json()["error"]["message"]
