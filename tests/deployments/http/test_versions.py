"""The versions of a bank over the admin routes: listed, compared, pinned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deployments.http.access import TOKEN_VARIABLE
from dlp_core.bank.publish import publish
from dlp_core.eval.results import save
from dlp_core.store.opening import open_store
from tests.support.banks import write_bank
from tests.support.console import server
from tests.support.evaluations import two_evaluations

TOKEN = "token-of-the-tests-1234"
ADMIN = {"authorization": f"Bearer {TOKEN}"}
ROUTES = [
    ("GET", "/bank/versions"),
    ("GET", "/bank/diff?from=one&to=two"),
    ("GET", "/bank/evaluations"),
    ("POST", "/bank/pin"),
    ("POST", "/bank/unpin"),
]


@pytest.fixture
def http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Two versions; `two` serves, without the adapter gamma."""
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    store = str(tmp_path / "store")
    publish(open_store(store), write_bank(tmp_path / "one"), version="one")
    publish(open_store(store), write_bank(tmp_path / "two", ["alpha", "beta"]), version="two")
    app = server(store, tmp_path / "cache")
    with TestClient(app, base_url="http://server/v1") as client:
        yield client


def test_versions_are_listed_and_pinned(http: TestClient) -> None:
    def listed() -> list[tuple[str, int, bool, bool]]:
        found = http.get("/bank/versions", headers=ADMIN).json()
        assert found["object"] == "list"
        assert all(one["size"] > 0 and one["created"].endswith("+00:00") for one in found["data"])
        return sorted((one["version"], one["adapters"], one["current"], one["pinned"]) for one in found["data"])

    assert listed() == [("one", 3, False, False), ("two", 2, True, False)]
    assert http.post("/bank/pin", json={"version": "one"}, headers=ADMIN).json() == {"version": "one", "pinned": True}
    assert listed()[0] == ("one", 3, False, True)
    assert http.post("/bank/unpin", json={"version": "one"}, headers=ADMIN).json()["pinned"] is False
    assert listed()[0] == ("one", 3, False, False)


def test_two_versions_are_compared(http: TestClient) -> None:
    assert http.get("/bank/diff?from=one&to=two", headers=ADMIN).json() == {
        "from": "one",
        "to": "two",
        "added": [],
        "removed": ["gamma"],
        "changed": [],
        "router_changed": True,
        "base_changed": False,
        "recipes_added": [],
        "recipes_removed": [],
        "recipes_changed": [],
        "pairs_added": [],
        "pairs_removed": [],
        "mixes": None,
    }


def test_evaluations_in_the_store_come_with_what_the_gate_says(http: TestClient, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for results in two_evaluations(("one", "two")):
        save(store, results)
    store.put("evals/two/people-79e4d5c75def-20261122T100000.000000Z.json", b"{}")
    found = http.get("/bank/evaluations", headers=ADMIN).json()
    first, second = found["data"]
    assert (first["bank"]["version"], first["verdict"]) == ("one", None)
    assert (second["bank"]["version"], second["verdict"]["baseline"]) == ("two", "one")
    assert (second["verdict"]["passed"], second["verdict"]["worse"]) == (False, ["sql"])
    assert "rows" not in second
    [damaged] = found["unreadable"]
    assert damaged["path"].startswith("evals/two/people-79e4d5c75def-20261122")
    assert "damaged" in damaged["reason"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/bank/diff?from=one", None, 400, "to"),
        ("GET", "/bank/diff?from=one&to=two&x=1", None, 400, "x"),
        ("GET", "/bank/diff?from=one&to=three", None, 404, "three"),
        ("POST", "/bank/pin", {"version": "three"}, 404, "three"),
        ("POST", "/bank/unpin", {"version": "one"}, 404, "not pinned"),
        ("POST", "/bank/pin", {}, 400, "version"),
    ],
)
def test_mistakes_are_named(http: TestClient, method: str, path: str, *, body: object, status: int, said: str) -> None:
    answer = http.request(method, path, json=body, headers=ADMIN)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_they_are_the_operators(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, path: str
) -> None:
    assert http.request(method, path, json={"version": "one"}).status_code == 401
    assert http.request(method, path, json={"version": "one"}, headers={"authorization": "Bearer x"}).status_code == 401
    monkeypatch.delenv(TOKEN_VARIABLE)
    app = server(str(tmp_path / "store"), tmp_path / "cache")
    without = TestClient(app, base_url="http://server/v1")
    assert (
        without.request(method, path, json={"version": "one"}, headers=ADMIN).json()["error"]["code"] == "unknown_url"
    )
