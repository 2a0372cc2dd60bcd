"""What the operator of a server gets: metrics, which tenants do not, and a first page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deployments.args import LogArgs, RoutingArgs
from deployments.http.access import TOKEN_VARIABLE, Access
from deployments.http.app import create_app
from tests.support.echo import LIMITS, EchoService, chat, refused

KEY, TOKEN, METRICS = "key-of-a-tenant-01234", "admin-token-0123456789", "metrics-token-0123456789"


def client(access: Access | None = None, service: EchoService | None = None, **settings: object) -> TestClient:
    app = create_app(
        service or EchoService(),
        routing=RoutingArgs(),
        limits=LIMITS,
        access=access or Access(),
        **settings,  # type: ignore[arg-type]
    )
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "a", "key": KEY}]}))
    return path


@pytest.fixture
def metrics_token(tmp_path: Path) -> Path:
    path = tmp_path / "metrics"
    path.write_text(METRICS)
    return path


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# --- metrics


def test_metrics_are_prometheus_text_also_before_there_is_a_bank() -> None:
    answer = client(service=EchoService(manifest=None)).get("/metrics")
    assert (answer.status_code, answer.text) == (200, "dlp_requests_running 2.0\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_where_there_are_keys_metrics_are_for_the_operator(
    keys: Path, metrics_token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    http = client(Access(keys_file=keys, metrics_token_file=metrics_token))
    for headers in ({}, bearer(KEY), bearer("wrong-token-0123456789"), {"authorization": METRICS}):
        assert "operator" in refused(http.get("/metrics", headers=headers), 401, None, "invalid_api_key")
    for token in (TOKEN, METRICS):
        assert http.get("/metrics", headers=bearer(token)).status_code == 200


def test_without_any_token_nobody_reads_the_metrics_of_tenants(keys: Path) -> None:
    http = client(Access(keys_file=keys))
    for headers in ({}, bearer(KEY), bearer("")):
        assert http.get("/metrics", headers=headers).status_code == 401


def test_the_metrics_token_closes_metrics_and_opens_nothing_else(keys: Path, metrics_token: Path) -> None:
    http = client(Access(metrics_token_file=metrics_token))
    assert http.get("/metrics").status_code == 401
    assert http.get("/v1/models").status_code == 200
    http = client(Access(keys_file=keys, metrics_token_file=metrics_token))
    assert http.get("/v1/models", headers=bearer(METRICS)).status_code == 401


@pytest.mark.parametrize("lines", [True, False])
def test_each_request_is_counted_once_however_it_ends(*, lines: bool) -> None:
    ended: list[tuple[str, int, str | None]] = []
    http = client(log=LogArgs(requests=lines), on_end=lambda *end: ended.append(end))
    http.post("/v1/chat/completions", json=chat(stream=True))
    http.post("/v1/route", json={"text": "sql"})
    http.post("/v1/chat/completions", json=chat(model="nope"))
    http.get("/health")
    http.get("/metrics")
    assert ended == [
        ("/v1/chat/completions", 200, None),
        ("/v1/route", 200, None),
        ("/v1/chat/completions", 404, "model_not_found"),
    ]


# --- the first page


def test_the_first_page_names_pages_that_exist() -> None:
    http = client()
    found = http.get("/").json()
    assert (found.pop("name"), found.pop("version").count(".")) == ("dlp-serve", 2)
    assert set(found) == {"docs", "openapi", "models", "bank", "health", "metrics"}
    for path in found.values():
        assert http.get(path).status_code == 200


def test_a_browser_gets_html_with_the_console_first() -> None:
    url = "https://console.example.com/?a=1&b=2"
    http = client(console_url=url)
    assert http.get("/").json()["console"] == url
    page = http.get("/", headers={"accept": "text/html,application/xhtml+xml"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.index("https://console.example.com/?a=1&amp;b=2") < page.text.index('href="/docs"')


def test_strangers_are_not_told_the_version(keys: Path) -> None:
    http = client(Access(keys_file=keys))
    assert "version" not in http.get("/").json()
    assert "version" in http.get("/", headers=bearer(KEY)).json()
