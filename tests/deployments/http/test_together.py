"""Adapters that may not run together, over HTTP: refused where they are named, left out where the router joins them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deployments.args import RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from deployments.http.replies import bank_json
from dlp_core.bank.folder import read_folder
from dlp_core.together import Together
from tests.support.banks import write_bank
from tests.support.echo import LIMITS, EchoService, chat, manifest, refused

LEFT_OUT = [{"name": "cron", "not_together": ["cron", "sql"]}]


@pytest.fixture
def service() -> EchoService:
    return EchoService(manifest(together=Together((("cron", "dates"), ("dates", "sql")))))


@pytest.fixture
def http(service: EchoService) -> Iterator[TestClient]:
    api = create_app(service, routing=RoutingArgs(max_adapters=3), limits=LIMITS, access=Access())
    with TestClient(api, raise_server_exceptions=False, base_url="http://server/v1") as client:
        yield client


@pytest.mark.parametrize("route", ["/chat/completions", "/route"])
def test_an_explicit_mix_of_both_is_400_and_names_them(http: TestClient, route: str) -> None:
    both = [{"name": "sql", "weight": 0.5}, {"name": "dates", "weight": 0.2}, {"name": "cron", "weight": 0.1}]
    message = refused(
        http.post(route, json=chat("hello", dlp={"adapters": both})), 400, "dlp.adapters", "invalid_value"
    )
    assert message.startswith("adapters 'cron' and 'sql' may not run together in bank b1")
    assert http.post(route, json=chat("hello", dlp={"adapters": both[:2]})).status_code == 200


def test_a_routed_mix_leaves_the_less_likely_one_out_and_says_so(http: TestClient, service: EchoService) -> None:
    route = http.post("/route", json={"input": "sql sql cron dates"}).json()
    assert [part["adapter"] for part in route["mix"]] == ["sql", "dates"]
    assert sum(part["weight"] for part in route["mix"]) == 1
    assert route["left_out"] == LEFT_OUT
    answer = http.post("/chat/completions", json=chat("sql sql cron dates"))
    assert "cron" not in answer.headers["x-dlp-adapters"]
    assert [part.name for part in service.asked[-1].mix.adapters] == ["sql", "dates"]
    assert "left_out" not in http.post("/route", json={"input": "sql dates"}).json()


def test_a_key_sees_the_pairs_of_what_it_may_use(tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank")
    pairs = [["alpha", "beta"], ["beta", "gamma"]]
    (folder / "bank.json").write_text(json.dumps({"base_model": "org/tiny-base", "allowed_together": pairs}))
    bank, _ = read_folder(folder)
    assert bank_json(bank, None)["allowed_together"] == pairs
    assert bank_json(bank, frozenset({"alpha", "beta"}))["allowed_together"] == pairs[:1]
    assert bank_json(bank, frozenset({"alpha", "gamma"}))["allowed_together"] == []
    free, _ = read_folder(write_bank(tmp_path / "free"))
    assert "allowed_together" not in bank_json(free, frozenset({"alpha"}))
