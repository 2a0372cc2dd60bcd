"""Feedback over HTTP: whose it may be about, what it may say, where it goes, and who reads it."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from deployments.args import FeedbackArgs, LogArgs, RoutingArgs
from deployments.http import ids
from deployments.http.access import ADMIN, ANONYMOUS, TOKEN_VARIABLE, Access, Caller
from deployments.http.app import create_app
from deployments.http.keeping import Keeper
from dlp_core.bank.feedback import Feedback, KeptRequest, rows
from dlp_core.bank.kept import FEEDBACK, REQUESTS, read, today
from dlp_core.errors import EngineFailed
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.echo import LIMITS, EchoService, chat, refused

A, B, TOKEN = "key-of-team-a-0123456789", "key-of-team-b-0123456789", "admin-token-0123456789"


@pytest.fixture
def store() -> AdapterStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    entries = [{"name": "a", "key": A, "adapters": ["sql", "da*"]}, {"name": "b", "key": B}]
    path.write_text(json.dumps({"keys": entries}))
    return path


@contextmanager
def server(
    store: AdapterStore,
    *,
    keys: Path | None = None,
    prompts: bool = True,
    service: EchoService | None = None,
    **settings: Any,
) -> Iterator[TestClient]:
    """The application until it ends as a replica does."""
    arguments = FeedbackArgs(**{"delay_s": 3600.0, **settings})
    keeper = Keeper(store, arguments, prompts=prompts, replica=uuid.uuid4().hex)
    app = create_app(
        service or EchoService(),
        routing=RoutingArgs(),
        limits=LIMITS,
        access=Access(keys_file=keys),
        log=LogArgs(prompts=prompts),
        keeper=keeper,
    )
    with TestClient(app, base_url="http://server/v1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def http(store: AdapterStore) -> Iterator[TestClient]:
    with server(store) as client:
        yield client


@pytest.fixture
def keyed(store: AdapterStore, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with server(store, keys=keys) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(http: TestClient, text: str = "make sql", *, key: str = "none", **changes: Any) -> str:
    """The id of a reply."""
    return str(http.post("/chat/completions", json=chat(text, **changes), headers=bearer(key)).json()["id"])


def give(http: TestClient, *, key: str = "none", **body: Any) -> Any:
    return http.post("/feedback", json=body, headers=bearer(key))


def listed(http: TestClient, path: str, *, key: str = "none", **query: Any) -> list[dict[str, Any]]:
    reply = http.get(path, params=query, headers=bearer(key))
    assert reply.status_code == 200, reply.text
    return list(reply.json()["data"])


# --- giving


def test_feedback_reaches_the_store(http: TestClient, store: AdapterStore) -> None:
    request_id = ask(http)
    reply = give(http, request_id=request_id, adapter="cron", rating="down", comment="a schedule")
    assert reply.status_code == 200
    [kept] = read(store, FEEDBACK, Feedback)
    assert reply.json() == {"id": kept.id, "object": "feedback", "created": int(kept.created)}
    assert kept.id.startswith("fb-")
    assert (kept.key, kept.bank, kept.request_id, kept.text) == ("anybody", "b1", request_id, None)
    assert (kept.adapter, kept.rating, kept.comment) == ("cron", "down", "a schedule")


def test_a_clean_end_loses_nothing(store: AdapterStore) -> None:
    with server(store) as http:
        about = [ask(http, f"make sql {n}") for n in range(5)]
        for request_id in about:
            assert give(http, request_id=request_id, rating="up").status_code == 200
        assert len(read(store, FEEDBACK, Feedback)) == 1  # the first; the others wait
    assert {kept.request_id for kept in read(store, FEEDBACK, Feedback)} == set(about)
    assert {kept.id for kept in read(store, REQUESTS, KeptRequest)} == set(about)


@pytest.mark.parametrize("stream", [False, True])
def test_every_reply_has_an_id_for_feedback(http: TestClient, stream: bool) -> None:
    found = [
        http.post("/route", json={"text": "make sql"}).json()["id"],
        http.post("/completions", json={"model": "auto", "prompt": "make sql"}).json()["id"],
    ]
    reply = http.post("/chat/completions", json=chat(stream=stream))
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith(("data: {", "{"))]
    [streamed] = {json.loads(line)["id"] for line in lines}
    for request_id in (*found, streamed):
        assert give(http, request_id=request_id, adapter=None).status_code == 200


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "request_id", "exactly one"),
    ({"rating": "up"}, "request_id", "exactly one"),
    ({"request_id": "ID", "text": "x", "rating": "up"}, "request_id", "exactly one"),
    ({"request_id": "ID"}, "adapter", "at least one"),
    ({"request_id": "ID", "rating": None, "comment": None}, "adapter", "at least one"),
    ({"text": " \n", "rating": "up"}, "text", "empty"),
    ({"text": "x" * 16_385, "rating": "up"}, "text", "16384"),
    ({"request_id": "ID", "rating": 1}, "rating", "'up' or 'down'"),
    ({"request_id": "ID", "rating": "good"}, "rating", "'up' or 'down'"),
    ({"request_id": "ID", "comment": ""}, "comment", "at least 1"),
    ({"request_id": "ID", "comment": "x" * 2_001}, "comment", "at most 2000"),
    ({"request_id": "ID", "adapter": 7}, "adapter", "string"),
    ({"request_id": 7, "rating": "up"}, "request_id", "string"),
    ({"request_id": "x" * 129, "rating": "up"}, "request_id", "at most 128"),
]


@pytest.mark.parametrize(("body", "param", "words"), BAD, ids=str)
def test_what_makes_no_sense_is_a_400_that_says_so(
    http: TestClient, store: AdapterStore, body: dict[str, Any], param: str, words: str
) -> None:
    body = {key: ask(http) if value == "ID" else value for key, value in body.items()}
    assert words in refused(give(http, **body), 400, param, "invalid_value")
    assert read(store, FEEDBACK, Feedback) == []


def test_unknown_fields_bodies_and_sizes(http: TestClient) -> None:
    refused(give(http, text="x", rating="up", stars=5), 400, "stars", "unknown_parameter")
    refused(http.post("/feedback", content=b"{"), 400, None, "invalid_value")
    refused(http.post("/feedback", content=b"[]"), 400, None, "invalid_value")
    refused(give(http, text="x" * 30_000, rating="up"), 413, None, "request_too_large")


def test_an_unknown_adapter_is_a_404(http: TestClient) -> None:
    message = refused(give(http, text="x", adapter="zoo"), 404, "adapter", "model_not_found")
    assert message == "adapter 'zoo' does not exist in bank b1; GET /v1/bank lists the adapters"
    refused(give(http, text="x", adapter=""), 404, "adapter", "model_not_found")


# --- whose


def test_a_key_gives_feedback_on_its_own_requests_alone(keyed: TestClient, store: AdapterStore) -> None:
    mine = ask(keyed, key=A)
    invented = f"chatcmpl-{uuid.uuid4().hex}"
    words = {
        refused(give(keyed, key=key, request_id=id, rating="up"), 404, "request_id", "request_not_found").replace(
            id, ""
        )
        for key, id in ((B, mine), (A, invented), (B, invented), (B, "mine-1"), (B, mine.removeprefix("chat")))
    }
    assert len(words) == 1
    assert read(store, FEEDBACK, Feedback) == []
    assert give(keyed, key=A, request_id=mine, rating="up").status_code == 200
    assert give(keyed, key=TOKEN, request_id=mine, adapter="cron").status_code == 200
    refused(give(keyed, request_id=mine, rating="up"), 401, None, "invalid_api_key")


def test_an_id_is_not_the_id_of_the_client(http: TestClient) -> None:
    reply = http.post("/chat/completions", json=chat(), headers={"x-request-id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"
    message = refused(give(http, request_id="mine-1", rating="up"), 404, "request_id", "request_not_found")
    assert "not its x-request-id" in message


def test_an_adapter_that_the_key_may_not_use_does_not_exist(keyed: TestClient) -> None:
    messages = [
        refused(give(keyed, key=A, text="x", adapter=name), 404, "adapter", "model_not_found").replace(name, "")
        for name in ("cron", "zoo")
    ]
    assert messages[0] == messages[1]
    assert give(keyed, key=B, text="x", adapter="cron").status_code == 200


def test_ids_are_signed_by_key_and_equal_on_every_replica() -> None:
    one, two = Caller("a", None, b"1" * 32), Caller("b", None, b"2" * 32)
    id = ids.issue("cmpl", one)
    assert ids.issued_to(Caller("renamed", ("x",), b"1" * 32), id)
    for other in (two, Caller("a", None, b"")):
        assert not ids.issued_to(other, id)
    assert ids.issued_to(ADMIN, id)
    assert ids.issued_to(ANONYMOUS, ids.issue("route", ANONYMOUS))
    assert not ids.issued_to(one, id[:-1] + ("0" if id[-1] != "0" else "1"))
    assert not ids.issued_to(ANONYMOUS, f"{id}0")
    assert len({ids.issue("cmpl", one) for _ in range(1000)}) == 1000


def test_a_rating_of_a_reply_counts_for_the_bank_that_wrote_it(store: AdapterStore, keys: Path) -> None:
    service = EchoService()
    with server(store, keys=keys, service=service) as http:
        began = int(time.time())
        id = ask(http, key=A)
        for said in ({"rating": "down", "user": "hypatia"}, {"rating": "up"}, {"comment": "hm"}, {"adapter": "sql"}):
            assert give(http, key=A, request_id=id, **said).status_code == 200
        assert give(http, key=A, text="a prompt", rating="down").status_code == 200
    [down, up] = service.ratings
    assert (down[0], *down[2:]) == (id, True, "hypatia", "a")
    assert (up[0], *up[2:]) == (id, False, None, "a")
    assert began <= down[1] <= time.time()
    assert b"hypatia" not in b"".join(store.get(entry.key).data for entry in store.list("feedback/"))


def test_the_routes_want_a_key_before_they_read_anything(keyed: TestClient) -> None:
    for method, path in (("POST", "/feedback"), ("GET", "/feedback"), ("GET", "/requests")):
        refused(keyed.request(method, path, content=b"{"), 401, None, "invalid_api_key")


# --- requests


def test_routed_requests_are_kept(http: TestClient, store: AdapterStore) -> None:
    chosen = ask(http, "cron cron cron sql")
    nobody = http.post("/route", json={"text": "hello"}).json()["id"]
    for named in ({"model": "sql"}, {"dlp": {"adapters": [{"name": "sql"}]}}):
        ask(http, **named)
    http.post("/completions", json={"model": "auto", "prompt": ["make sql", "make cron"]})
    http.post("/chat/completions", json={"model": "auto"})
    first, second = sorted(listed(http, "/requests"), key=lambda entry: entry["created"])
    assert (first["id"], second["id"]) == (chosen, nobody)
    times = {key: first.pop(key) for key in ("created", "total_seconds", "decide_seconds", "first_token_seconds")}
    assert 0 < times["decide_seconds"] <= times["first_token_seconds"] <= times["total_seconds"]
    assert first == {
        "object": "request",
        "id": chosen,
        "key": "anybody",
        "route": "/v1/chat/completions",
        "text": "cron cron cron sql",
        "mix": [{"adapter": "cron", "weight": 0.75}, {"adapter": "sql", "weight": 0.25}],
        "reason": "routed",
        "confidence": 0.75,
        "bank": "b1",
        "router": "r1",
        "status": 200,
        "error_code": None,
        "feedback": [],
    }
    assert (second["route"], second["mix"], second["reason"]) == ("/v1/route", [], "none_of_these")


def test_a_request_that_fails_is_kept_with_its_status(store: AdapterStore) -> None:
    with server(store, service=EchoService(fail=EngineFailed("gone"))) as http:
        http.post("/chat/completions", json=chat())
        [kept] = listed(http, "/requests")
    assert (kept["status"], kept["error_code"]) == (503, "engine_failed")


def test_a_text_is_kept_as_far_as_the_router_reads_it(http: TestClient) -> None:
    ask(http, "sql " + "x" * 10_000)
    [kept] = listed(http, "/requests")
    assert kept["text"] == "sql " + "x" * 1532 + "\n" + "x" * 512


def test_of_a_follow_up_the_text_that_decided_is_kept(http: TestClient) -> None:
    turns = [("user", "make sql"), ("assistant", "Done."), ("user", "and again?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    http.post("/chat/completions", json=chat(messages=messages))
    assert [kept["text"] for kept in listed(http, "/requests")] == ["make sql\nand again?"]


def test_without_log_prompts_no_text_is_kept(store: AdapterStore) -> None:
    with server(store, prompts=False) as http:
        request_id = ask(http, "make sql about zebras")
        assert give(http, request_id=request_id, adapter="sql").status_code == 200
        message = refused(http.get("/requests"), 404, None, "not_kept")
        assert message == "requests are not kept here: log.prompts is off"
    [file] = store.list()
    assert file.key.startswith(f"{FEEDBACK}{today()}/")
    assert b"zebra" not in store.get(file.key).data


def test_a_share_and_a_number_a_day_bound_what_is_kept(store: AdapterStore) -> None:
    with server(store, request_share=0.0) as http:
        ask(http)
    assert store.list() == []
    with server(store, requests_per_day=3) as http:
        for _ in range(5):
            ask(http)
    assert len(read(store, REQUESTS, KeptRequest)) == 3


# --- reading


def test_a_request_carries_what_was_said_about_it(keyed: TestClient) -> None:
    about = ask(keyed, "make sql", key=B)
    other = ask(keyed, "make sql and cron", key=B)
    give(keyed, key=B, request_id=about, rating="up")
    give(keyed, key=B, request_id=about, rating="down")
    give(keyed, key=TOKEN, request_id=about, adapter="cron")
    entries = {entry["id"]: entry["feedback"] for entry in listed(keyed, "/requests", key=TOKEN)}
    assert entries[other] == []
    assert [(e["key"], e.get("rating"), e.get("adapter")) for e in entries[about]] == [
        ("b", "down", None),
        ("admin", None, "cron"),
    ]
    # the key does not see what the operator said
    mine = {entry["id"]: entry["feedback"] for entry in listed(keyed, "/requests", key=B)}
    assert [entry["key"] for entry in mine[about]] == ["b"]
    for reviewed, expected in (("true", about), ("false", other)):
        assert [entry["id"] for entry in listed(keyed, "/requests", key=B, reviewed=reviewed)] == [expected]


def test_a_key_reads_its_own_and_the_admin_token_everything(keyed: TestClient) -> None:
    a, b = ask(keyed, key=A), ask(keyed, key=B)
    give(keyed, key=A, request_id=a, rating="up")
    give(keyed, key=B, text="a secret of b", adapter="cron")
    for path, whose in (("/requests", {A: {a}, B: {b}, TOKEN: {a, b}}), ("/feedback", {A: {"a"}, B: {"b"}})):
        for key, expected in whose.items():
            field = "id" if path == "/requests" else "key"
            assert {entry[field] for entry in listed(keyed, path, key=key)} == expected
    assert len(listed(keyed, "/feedback", key=TOKEN)) == 2


def test_without_keys_an_admin_token_is_needed_to_read(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell whose the prompts are."""
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with server(store) as http:
        request_id = ask(http)
        assert give(http, request_id=request_id, rating="up").status_code == 200
        for path in ("/requests", "/feedback"):
            refused(http.get(path), 401, None, "invalid_api_key")
            assert len(listed(http, path, key=TOKEN)) == 1


def test_lists_are_in_order_and_in_pages(http: TestClient) -> None:
    texts = ["sql", "sql cron", "sql cron cron", "hello"]
    asked = [ask(http, text) for text in texts]
    assert [entry["id"] for entry in listed(http, "/requests")] == asked[::-1]
    unsure_first = [asked[index] for index in (3, 1, 2, 0)]
    assert [entry["id"] for entry in listed(http, "/requests", order="confidence")] == unsure_first
    pages, after = [], {}
    while True:
        reply = http.get("/requests", params={"order": "confidence", "limit": 3, **after}).json()
        assert reply["object"] == "list"
        pages.append([entry["id"] for entry in reply["data"]])
        if not reply["has_more"]:
            break
        after = {"after": pages[-1][-1]}
    assert pages == [unsure_first[:3], unsure_first[3:]]
    for number in range(3):
        give(http, text=f"text {number}", rating="up")
    assert [entry["text"] for entry in listed(http, "/feedback", limit=2)] == ["text 2", "text 1"]
    yesterday = (today() - timedelta(days=1)).isoformat()
    assert (listed(http, "/requests", day=yesterday), listed(http, "/feedback", day=yesterday)) == ([], [])


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"day": "yesterday"}, "day"),
        ({"order": "size"}, "order"),
        ({"reviewed": "perhaps"}, "reviewed"),
        ({"after": "chatcmpl-1"}, "after"),
    ],
    ids=str,
)
def test_a_query_that_makes_no_sense_is_a_400(http: TestClient, query: dict[str, Any], param: str) -> None:
    refused(http.get("/requests", params=query), 400, param, "invalid_value")
    refused(http.get("/feedback", params={"page": 2}), 400, "page", "unknown_parameter")


def test_the_api_page_has_the_bodies_and_the_queries(http: TestClient) -> None:
    page = http.get("http://server/openapi.json").json()
    assert "FeedbackBody" in page["components"]["schemas"]
    parameters = {entry["name"]: entry for entry in page["paths"]["/v1/requests"]["get"]["parameters"]}
    assert set(parameters) == {"day", "limit", "after", "order", "reviewed"}
    assert parameters["order"]["schema"]["enum"] == ["time", "confidence"]


# --- the store


def test_a_server_that_keeps_nothing_says_so(keys: Path) -> None:
    app = create_app(EchoService(), routing=RoutingArgs(), limits=LIMITS, access=Access())
    http = TestClient(app, base_url="http://server/v1")
    for reply in (give(http, text="x", rating="up"), http.get("/feedback"), http.get("/requests")):
        assert "feedback.keep is off" in refused(reply, 404, None, "not_kept")


def block(folder: Path) -> Path:
    """A store that takes nothing: files are where its folders would be."""
    folder.mkdir(exist_ok=True)
    for name in ("feedback", "requests"):
        (folder / name).write_text("")
    return folder


def test_a_store_that_takes_nothing_is_told_and_disturbs_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(block(tmp_path / "store")))
    with ExitStack() as started, caplog.at_level(logging.WARNING):
        http = started.enter_context(server(store, most_waiting=2, batch=1))
        request_id = ask(http)
        message = refused(give(http, request_id=request_id, rating="up"), 503, None, "store_unavailable")
        assert "feedback cannot be written to the bank's store: object 'feedback/" in message
        for _ in range(4):
            assert ask(http)
        give(http, request_id=request_id, rating="up")
        reply = give(http, request_id=request_id, rating="up")
        assert "too much feedback waits" in refused(reply, 503, None, "store_unavailable")
        assert reply.headers["retry-after"] == "60"
        assert "records of requests/ are dropped" in caplog.text
        for name in ("feedback", "requests"):
            (tmp_path / "store" / name).unlink()
    assert len(read(store, FEEDBACK, Feedback)) == 2
    assert len(read(store, REQUESTS, KeptRequest)) == 2


def test_feedback_becomes_rows_for_the_router(http: TestClient, store: AdapterStore) -> None:
    give(http, request_id=ask(http, "sql tomorrow at 8"), adapter="cron")
    give(http, text="tell me a joke", adapter=None)
    listed(http, "/requests")  # writes what waits
    listed(http, "/feedback")
    requests = {request.id: request for request in read(store, REQUESTS, KeptRequest)}
    found = rows(read(store, FEEDBACK, Feedback), requests)
    assert [(row.task, row.input) for row in found] == [("cron", "sql tomorrow at 8"), (None, "tell me a joke")]
