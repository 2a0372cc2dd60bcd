"""The first API key: made once over HTTPS, as the head's init container makes it, and never again."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments.http.access import Access
from deployments.http.errors import Unauthorized
from deployments.kubernetes import first_key
from tests.support.certificates import write_certificates

TOKEN = "the-heads-token"


class ApiServer(HTTPServer):
    """What an API server does with a created Secret: 201, or 409 where it exists; `refusals` come before that."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secrets: dict[str, dict[str, Any]] = {}
        self.refusals: list[int] = []
        self.requests = 0


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_POST(self) -> None:
        self.server.requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        assert self.path.partition("?")[0] == "/api/v1/namespaces/team/secrets"
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"message": "Unauthorized"})
        elif self.server.refusals:
            self._answer(self.server.refusals.pop(0), {"kind": "Status", "message": "refused"})
        elif name in self.server.secrets:
            self._answer(409, {"kind": "Status", "message": f'secrets "{name}" already exists'})
        else:
            self.server.secrets[name] = body
            self._answer(201, body)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server, with an account for it in `tmp_path`."""
    authority, certificate = write_certificates(tmp_path)
    authority.rename(tmp_path / "ca.crt")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "namespace").write_text("team")
    server = ApiServer()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ensure(account: Path) -> str:
    return first_key.ensure("dlp-keys", account, wait=lambda _: None)


def keys_of(server: ApiServer) -> str:
    return base64.b64decode(server.secrets["dlp-keys"]["data"][first_key.KEY_FILE]).decode()


def test_a_key_is_made_and_lets_its_holder_in(server: ApiServer, tmp_path: Path) -> None:
    assert "made the Secret dlp-keys" in ensure(tmp_path)
    content = keys_of(server)
    [line] = [line for line in content.splitlines() if "key: " in line]
    key = line.partition("key: ")[2]
    mounted = tmp_path / "keys.yaml"
    mounted.write_text(content)
    access = Access(keys_file=mounted)
    caller = access.caller(f"Bearer {key}")
    assert (caller.name, caller.adapters) == ("first", None)
    with pytest.raises(Unauthorized):
        access.caller(None)


def test_a_secret_that_exists_stays_as_it_is(server: ApiServer, tmp_path: Path) -> None:
    ensure(tmp_path)
    before = keys_of(server)
    assert "stays as it is" in ensure(tmp_path)
    assert keys_of(server) == before


def test_two_installations_have_different_keys(server: ApiServer, tmp_path: Path) -> None:
    ensure(tmp_path)
    before = keys_of(server)
    server.secrets.clear()
    ensure(tmp_path)
    assert keys_of(server) != before


def test_a_busy_api_server_is_asked_again(server: ApiServer, tmp_path: Path) -> None:
    server.refusals = [503, 429, 500]
    assert "made" in ensure(tmp_path)
    assert server.requests == 4


def test_without_the_right_to_it_the_head_goes_on(server: ApiServer, tmp_path: Path) -> None:
    """Whoever forbids it makes the Secret, for which the routers wait."""
    server.refusals = [403]
    assert "wait until you make it" in ensure(tmp_path)
    assert server.secrets == {}


def test_what_cannot_be_repaired_ends_at_once_with_the_reason(server: ApiServer, tmp_path: Path) -> None:
    server.refusals = [422]
    with pytest.raises(SystemExit, match="422: refused"):
        ensure(tmp_path)
    assert server.requests == 1


def test_an_api_server_that_cannot_be_reached_is_named(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    with pytest.raises(SystemExit, match="cannot be reached"):
        ensure(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    authority, _ = write_certificates(other)
    authority.replace(tmp_path / "ca.crt")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    with pytest.raises(SystemExit, match="certificate"):
        ensure(tmp_path)
    assert server.secrets == {}
