"""API keys and the admin token: who is told what, and that no secret is ever told."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from deployments.args import RoutingArgs
from deployments.http.access import ANONYMOUS, TOKEN_VARIABLE, Access
from deployments.http.admin import Published
from deployments.http.app import create_app
from deployments.http.errors import Unauthorized
from dlp_core.bank.follower import Refusal
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish
from dlp_core.errors import BankError, InvalidRequest, UnknownModel
from dlp_core.store.opening import open_store
from tests.support.banks import write_bank
from tests.support.echo import LIMITS, EchoService

A, B, TOKEN = "key-of-team-a-0123456789", "key-of-team-b-0123456789", "admin-token-0123456789"
NAMES = ("cron", "dates", "sql")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(
        tmp_path / "keys.yaml",
        [{"name": "a", "key": A, "adapters": ["sql", "da*"]}, {"name": "b", "key": B}],
    )


def write_keys(path: Path, keys: Any) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- keys


def test_without_a_file_everybody_may_use_everything() -> None:
    access = Access()
    for header in (None, "Bearer whatever", "Basic x"):
        assert access.caller(header) == ANONYMOUS
    assert ANONYMOUS.allowed(NAMES) is None


def test_a_key_has_its_adapters(keys: Path) -> None:
    access = Access(keys_file=keys)
    assert access.caller(f"Bearer {A}").allowed(NAMES) == {"dates", "sql"}
    assert access.caller(f"bearer  {B} ").allowed(NAMES) is None
    for header in (None, "", A, f"Basic {A}", "Bearer", "Bearer nothing", f"Bearer {A}x", f"Bearer {A[:-1]}"):
        with pytest.raises(Unauthorized):
            access.caller(header)


def test_the_admin_token_is_a_key_for_everything(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    access = Access(keys_file=keys)
    assert access.caller(f"Bearer {TOKEN}").allowed(NAMES) is None
    assert access.require_admin(f"Bearer {TOKEN}")
    for header in (None, f"Bearer {A}", f"Bearer {B}"):
        with pytest.raises(Unauthorized, match="admin token"):
            access.require_admin(header)


def test_the_token_may_stand_in_a_file_and_change_there(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    access = Access(admin_token_file=file)
    assert access.require_admin(f"Bearer {TOKEN}")
    file.write_text("another-token-0123456789")
    assert access.require_admin("Bearer another-token-0123456789")
    with pytest.raises(Unauthorized):
        access.require_admin(f"Bearer {TOKEN}")


def test_the_token_may_come_while_the_server_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    access = Access(admin_token_file=file)
    assert access.require_admin(f"Bearer {TOKEN}") is False
    file.write_text("short")
    assert access.require_admin(f"Bearer {TOKEN}") is False
    assert "fewer than 16" in caplog.text
    file.write_text(TOKEN)
    assert access.require_admin(f"Bearer {TOKEN}")


def test_a_token_file_that_becomes_useless_locks_nobody_out(
    keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    access = Access(admin_token_file=file, keys_file=keys)
    for break_it in (lambda: file.write_text("short"), file.unlink):
        caplog.clear()
        break_it()
        with caplog.at_level(logging.ERROR, "dlp_core"):
            assert access.caller(f"Bearer {A}").name == "a"
            assert access.require_admin(f"Bearer {TOKEN}")
        assert caplog.text.count("stays in use") == 1


def test_a_key_is_revoked_while_the_server_runs(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    access = Access(keys_file=keys)
    access.caller(f"Bearer {A}")
    write_keys(keys, [{"name": "b", "key": B}])
    with pytest.raises(Unauthorized):
        access.caller(f"Bearer {A}")
    with caplog.at_level(logging.ERROR, "dlp_core"):
        keys.write_text("keys: [{")
        os.utime(keys, ns=(1, 1))
        access.caller(f"Bearer {B}")
    assert "stays in use" in caplog.text
    keys.unlink()
    access.caller(f"Bearer {B}")


BAD_FILES = {
    "no file": (None, "cannot be read"),
    "not YAML": ("keys: [{", "not YAML"),
    "no keys": ("{}", "keys: Field required"),
    "a short key": ('{"keys": [{"name": "a", "key": "SECRET-short"}]}', "at least 16 characters"),
    "a name that is a path": ('{"keys": [{"name": "../a", "key": "SECRET-0123456789"}]}', r"keys\.0\.name"),
    "an unknown field": ('{"keys": [{"name": "a", "key": "SECRET-0123456789", "x": 1}]}', r"keys\.0\.x"),
    "a key twice": (
        '{"keys": [{"name": "a", "key": "SECRET-0123456789"}, {"name": "b", "key": "SECRET-0123456789"}]}',
        "the same key",
    ),
    "a name twice": (
        '{"keys": [{"name": "a", "key": "SECRET-0123456789"}, {"name": "a", "key": "SECRET-9876543210"}]}',
        "the same name",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_stops_the_server_and_tells_no_secret(case: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[case]
    path = tmp_path / "keys.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidRequest, match=message) as refused:
        Access(keys_file=path)
    assert "SECRET" not in refused.value.message


def test_a_short_admin_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    with pytest.raises(InvalidRequest, match="fewer than 16") as refused:
        Access()
    assert "secret" not in refused.value.message.replace("the secret", "")


def test_no_secret_is_in_a_representation(keys: Path) -> None:
    access = Access(keys_file=keys)
    assert A not in repr(vars(access))
    assert A not in repr(access.caller(f"Bearer {A}"))


# --- what a key may see


@pytest.fixture
def service(tmp_path: Path) -> EchoService:
    return EchoService(manifest=publish(open_store(str(tmp_path / "store")), write_bank(tmp_path / "bank", NAMES)))


@pytest.fixture
def http(service: EchoService, keys: Path) -> TestClient:
    return TestClient(
        create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access(keys_file=keys)),
        base_url="http://test/v1",
    )


ROUTES = [
    ("POST", "/chat/completions"),
    ("POST", "/completions"),
    ("POST", "/route"),
    ("GET", "/models"),
    ("GET", "/models/sql"),
    ("GET", "/bank"),
    ("GET", "http://test/openapi.json"),
    ("GET", "http://test/docs"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_wants_a_key_before_it_reads_anything(http: TestClient, method: str, path: str) -> None:
    for headers in ({}, bearer("nothing-anybody-knows")):
        reply = http.request(method, path, headers=headers, content=b"not even JSON")
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["code"] == "invalid_api_key"


def test_health_wants_none_and_then_tells_nothing(http: TestClient) -> None:
    """A probe has no key; a stranger learns no version, no store and no reason."""
    assert http.get("http://test/health").json() == {"status": "ok"}
    assert "bank" in http.get("http://test/health", headers=bearer(A)).json()


def test_why_nothing_is_served_is_told_to_callers_only(keys: Path) -> None:
    service = EchoService(manifest=None)
    http = TestClient(create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access(keys_file=keys)))
    stranger, caller = http.get("/health"), http.get("/health", headers=bearer(A))
    assert (stranger.status_code, caller.status_code) == (503, 503)
    assert "s3://" not in stranger.text
    assert "s3://" in caller.text


def test_what_a_key_may_not_use_is_not_seen(http: TestClient) -> None:
    mine = [model["id"] for model in http.get("/models", headers=bearer(A)).json()["data"]]
    assert ("sql" in mine, "dates" in mine, "cron" in mine) == (True, True, False)
    assert "cron" in [model["id"] for model in http.get("/models", headers=bearer(B)).json()["data"]]
    bank = http.get("/bank", headers=bearer(A)).json()
    assert [adapter["name"] for adapter in bank["adapters"]] == ["dates", "sql"]
    assert sorted(bank["router"]["labels"]) == ["dates", "sql"]
    whole = http.get("/bank", headers=bearer(B)).json()
    assert whole["digest"] not in (text := json.dumps(bank))
    assert whole["router"]["digest"] not in text
    for path in ("/models", "/bank", "/models/sql"):
        assert "cron" not in http.get(path, headers=bearer(A)).text


def test_what_a_key_may_not_use_does_not_exist_for_it(http: TestClient) -> None:
    """Not a word differs from the answer about an adapter that nobody has."""

    def answers(adapter: str) -> list[str]:
        messages = [{"role": "user", "content": "hello"}]
        explicit = {"adapters": [{"name": adapter, "weight": 1.0}]}
        bodies = [
            ("/chat/completions", {"model": adapter, "messages": messages}),
            ("/chat/completions", {"model": f"org/tiny-base:{adapter}", "messages": messages}),
            ("/chat/completions", {"model": "auto", "messages": messages, "dlp": explicit}),
            ("/route", {"model": adapter, "text": "hello"}),
        ]
        replies = [http.post(path, json=body, headers=bearer(A)) for path, body in bodies]
        replies.append(http.get(f"/models/{adapter}", headers=bearer(A)))
        assert [reply.status_code for reply in replies] == [404] * 5
        return [reply.text.replace(adapter, "X") for reply in replies]

    assert answers("cron") == answers("nobody")


def test_the_mask_reaches_the_router(http: TestClient, service: EchoService) -> None:
    http.post("/route", json={"text": "sql cron"}, headers=bearer(A))
    assert service.wishes[-1].allowed == {"dates", "sql"}
    http.post("/route", json={"text": "sql cron"}, headers=bearer(B))
    assert service.wishes[-1].allowed is None


def test_a_key_without_any_adapter_of_the_bank_gets_the_plain_backbone(service: EchoService, tmp_path: Path) -> None:
    file = write_keys(tmp_path / "none.yaml", [{"name": "c", "key": A, "adapters": ["elsewhere-*"]}])
    api = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access(keys_file=file))
    reply = TestClient(api).post("/v1/route", json={"text": "sql"}, headers=bearer(A)).json()
    assert (reply["reason"], reply["mix"], reply["probabilities"]) == ("none_of_these", [], None)


# --- the admin routes


@dataclass
class AdminEcho(EchoService):
    """Remembers what it was asked."""

    changes: list[tuple[object, ...]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()

    async def load_adapter(self, body: Any) -> Published:
        if body.lora_path == "/bad":
            raise BankError("it does not fit")
        bank = self._changed("load", body.lora_name, body.lora_path, body.load_inplace, body.examples)
        return Published(bank, self.warnings)

    async def unload_adapter(self, name: str) -> BankManifest:
        if name == "nobody":
            raise UnknownModel("adapter 'nobody' does not exist in bank b1")
        return self._changed("unload", name)

    async def publish(self, body: Any) -> Published:
        return Published(self._changed("publish", body.folder, body.version), self.warnings)

    async def set_canary(self, body: Any) -> None:
        self._changed("canary", body.version, body.share, body.sticky_by)

    async def promote(self) -> None:
        self._changed("promote")

    async def set_shadow(self, body: Any) -> None:
        self._changed("shadow", body.version, body.generate)

    async def rollback(self, version: str | None) -> BankManifest:
        return self._changed("rollback", version)

    def _changed(self, *change: object) -> Any:
        self.changes.append(change)
        return SimpleNamespace(version="b2", adapters=("x", "y"))


@pytest.fixture
def echo() -> AdminEcho:
    return AdminEcho()


@pytest.fixture
def admin(echo: AdminEcho, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    api = create_app(echo, routing=RoutingArgs(), limits=LIMITS, access=Access())
    return TestClient(api, base_url="http://test/v1", headers=bearer(TOKEN))


ADMIN_ROUTES = ["/load_lora_adapter", "/unload_lora_adapter", "/bank/publish", "/bank/rollback"]
ADMIN_ROUTES += ["/bank/canary", "/bank/promote", "/bank/shadow"]


@pytest.mark.parametrize("path", ADMIN_ROUTES)
def test_without_a_token_there_are_no_admin_routes(path: str) -> None:
    http = TestClient(create_app(AdminEcho(), routing=RoutingArgs(), limits=LIMITS, access=Access()))
    nowhere = http.post("/v1/nowhere", json={}, headers=bearer(TOKEN))
    reply = http.post(f"/v1{path}", json={}, headers=bearer(TOKEN))
    assert reply.status_code == nowhere.status_code == 404
    assert reply.text.replace(path, "/nowhere") == nowhere.text


@pytest.mark.parametrize("path", ADMIN_ROUTES)
def test_nothing_but_the_token_opens_them(admin: TestClient, echo: AdminEcho, path: str) -> None:
    for headers in ({"authorization": ""}, bearer("wrong-token-0123456789"), bearer(TOKEN[:-1])):
        assert admin.post(path, content=b"?", headers=headers).status_code == 401
    assert echo.changes == []


def test_vllms_bodies_and_answers(admin: TestClient, echo: AdminEcho) -> None:
    reply = admin.post("/load_lora_adapter", json={"lora_name": "new", "lora_path": "s3://b/new/"})
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'new' added successfully.")
    reply = admin.post("/unload_lora_adapter", json={"lora_name": "new", "lora_int_id": 3})
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
    admin.post(
        "/load_lora_adapter", json={"lora_name": "new", "lora_path": "/p", "load_inplace": True, "examples": ["a"]}
    )
    assert echo.changes == [
        ("load", "new", "s3://b/new/", False, None),
        ("unload", "new"),
        ("load", "new", "/p", True, ["a"]),
    ]


def test_publish_and_rollback(admin: TestClient, echo: AdminEcho) -> None:
    published = admin.post("/bank/publish", json={"folder": "/bank"}).json()
    assert published == {"version": "b2", "adapters": 2, "warnings": []}
    admin.post("/bank/rollback", json={"version": "b1"})
    admin.post("/bank/rollback")
    assert echo.changes == [("publish", "/bank", None), ("rollback", "b1"), ("rollback", None)]


def test_warnings_come_with_the_answer(admin: TestClient, echo: AdminEcho) -> None:
    echo.warnings = ("adapter 'new': it was trained on 'x'",)
    assert admin.post("/bank/publish", json={"folder": "/bank"}).json()["warnings"] == list(echo.warnings)
    reply = admin.post("/load_lora_adapter", json={"lora_name": "new", "lora_path": "/new"})
    assert reply.text.splitlines()[1:] == ["Warning: adapter 'new': it was trained on 'x'"]


def test_admin_mistakes_have_their_status(admin: TestClient) -> None:
    missing = admin.post("/load_lora_adapter", json={"lora_name": "x"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "lora_path")
    assert admin.post("/load_lora_adapter", json={"lora_name": "x", "lora_path": "/bad"}).status_code == 422
    assert admin.post("/unload_lora_adapter", json={"lora_name": "nobody"}).status_code == 404
    assert admin.post("/bank/publish", json={"folder": "/b", "force": True}).status_code == 400


def test_health_reports_a_refused_bank(echo: AdminEcho, admin: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert admin.get("http://test/health").json() == {"status": "ok", "bank": "b1"}
    monkeypatch.setattr(echo, "refused", lambda: Refusal("b2", "adapter 'sql': rank 0"))
    assert admin.get("http://test/health").json() == {
        "status": "ok",
        "bank": "b1",
        "refused": {"version": "b2", "reason": "adapter 'sql': rank 0"},
    }


# --- key files as people and attackers write them


@pytest.mark.parametrize(
    "content",
    [
        "keys:\n- name: a\n  key: 2024-13-45\n",
        "keys:\n- name: a\n  key: 2024-12-24\n",
        "[" * 5000,
        "{a: " * 5000,
        "keys: [&a [*a]]",
        "keys: 7",
        "- 1",
        "",
        "\x00",
        "!!python/object/apply:os.system [id]",
        "keys: {<<: [1]}",
    ],
)
def test_a_key_file_that_is_none_is_told_without_its_content(content: str, tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(content)
    with pytest.raises(InvalidRequest, match=r"keys\.yaml") as caught:
        Access(keys_file=tmp_path / "keys.yaml")
    assert "2024" not in caught.value.message


@settings(max_examples=200, deadline=None)
@given(content=st.text(alphabet="keys: name-[]{}&*!?|>'\"#,\n0123456789éadptr_", max_size=120))
def test_any_key_file_is_read_or_refused(content: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(content, encoding="utf-8")
    with suppress(InvalidRequest):
        Access(keys_file=path)


# --- who shares cached prompts


@pytest.mark.parametrize(
    ("share", "sharing"),
    [
        ("key", [{0, 1}, {2}, {3}, {4, 5}, {6}]),
        ("all", [{0, 1, 4, 5}, {2, 6}, {3}]),
        ("none", [{n} for n in range(7)]),
    ],
)
def test_prompts_share_blocks_as_configured(share: Any, sharing: list[set[int]], keys: Path) -> None:
    service = EchoService()
    app = create_app(
        service, routing=RoutingArgs(), limits=LIMITS, access=Access(keys_file=keys), share=share
    )  # key a: 0 to 3, key b: 4 to 6
    with TestClient(app) as http:
        for key, salt in ((A, None), (A, None), (A, "x"), (A, "y"), (B, None), (B, None), (B, "x")):
            body = {"model": "auto", "prompt": "sql"} | ({} if salt is None else {"cache_salt": salt})
            assert http.post("/v1/completions", json=body, headers=bearer(key)).status_code == 200
    salts = [request.salt for request in service.asked]
    assert [{n for n, other in enumerate(salts) if other == salt} for salt in dict.fromkeys(salts)] == sharing


def test_all_choices_of_a_request_share_their_prompt() -> None:
    service = EchoService()
    app = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access(), share="none")
    with TestClient(app) as http:
        http.post("/v1/completions", json={"model": "auto", "prompt": "sql", "n": 3})
    assert len({request.salt for request in service.asked}) == 1 < len(service.asked)
