"""Who may use the page: no other page, no other name, and nobody without the password."""

from __future__ import annotations

import base64

import pytest

from deployments.console.app import PAGES
from deployments.console.guard import HEADERS, OPEN
from deployments.console.settings import ConsoleSettings
from dlp_core.errors import InvalidRequest
from tests.deployments.console.conftest import OWN, Open

NOBODY = "http://127.0.0.1:9"
"""Where no server is."""


def basic(password: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'anyone:{password}'.encode()).decode()}"}


@pytest.mark.parametrize("path", [*PAGES, "/static/main.js", "/console/state", "/api/health", OPEN, "/nowhere"])
def test_every_answer_has_the_headers(http: Open, path: str) -> None:
    answer = http(NOBODY).get(path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 502),
        ({"origin": OWN}, 502),
        ({"origin": OWN, "sec-fetch-site": "same-origin"}, 502),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
    ],
)
def test_only_its_own_page_changes_something(http: Open, headers: dict[str, str], status: int) -> None:
    assert http(NOBODY).post("/api/v1/bank/rollback", json={}, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("path", "mode", "status"),
    [("/bank", "navigate", 200), ("/console/state", "cors", 403), ("/console/state", "no-cors", 403)],
)
def test_another_page_may_link_it_and_read_nothing(http: Open, path: str, mode: str, status: int) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
    assert http(NOBODY).get(path, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8001", 200), ("localhost:8001", 200), ("[::1]:8001", 200), ("evil.example", 421), ("10.0.0.7", 421)],
)
def test_on_a_loopback_address_no_other_name_reaches_it(http: Open, host: str, status: int) -> None:
    assert http(NOBODY).get("/console/state", headers={"host": host}).status_code == status


def test_others_reach_it_under_any_name_with_the_password_alone(http: Open) -> None:
    console = http(NOBODY, host="0.0.0.0", password="open sesame")
    assert console.get("/bank", headers={"host": "console.example"}).status_code == 401
    assert "Basic" in console.get("/bank").headers["www-authenticate"]
    for wrong in (basic("open"), basic(""), {"authorization": "Basic ?"}, {"authorization": "Bearer open sesame"}):
        assert console.get("/bank", headers=wrong).status_code == 401
    assert console.get("/bank", headers=basic("open sesame") | {"host": "console.example"}).status_code == 200
    assert console.get(OPEN).text == "ok"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "console.example"])
def test_where_others_reach_it_a_password_is_needed(host: str) -> None:
    with pytest.raises(InvalidRequest, match="DLP_CONSOLE_PASSWORD"):
        ConsoleSettings(NOBODY, host=host)
    ConsoleSettings(NOBODY, host=host, password="x")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a/v2", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="--url"):
        ConsoleSettings(url)


def test_secrets_are_not_shown(http: Open) -> None:
    secrets = {"key": "key-of-a-team-1234", "admin_token": "token-123", "password": "sesame"}
    state = http(f"{NOBODY}/v1", **secrets).get("/console/state", headers=basic("sesame"))
    assert state.json()["url"] == NOBODY
    assert (state.json()["key"], state.json()["admin"], state.json()["password"]) == (True, True, True)
    for secret in secrets.values():
        assert secret not in repr(ConsoleSettings(NOBODY, **secrets)) + state.text
