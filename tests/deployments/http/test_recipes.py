"""Recipes in the HTTP API: called by name, routed to, listed, and hidden from keys that may not use their adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from deployments.args import RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from dlp_core.decision import Decision, decide
from dlp_core.errors import RouterUnavailable
from dlp_core.mix import Mix
from tests.support.echo import BASE, LIMITS, EchoService, chat, manifest, refused

REPORT = [
    {"adapter": "sql", "weight": 0.5, "digest": "sha256:sql"},
    {"adapter": "dates", "weight": -0.25, "digest": "sha256:dates"},
]
A, B = "key-of-team-a-0123456789", "key-of-team-b-0123456789"


@pytest.fixture
def service() -> EchoService:
    bank = manifest()
    mix = Mix(Mix.of({"sql": 0.5, "dates": -0.25}).adapters, ("report",))
    bank.recipes = [SimpleNamespace(name="report", mix=mix, description="Dated queries.")]
    bank.recipe_mixes = {"report": mix}
    bank.router.labels = ("cron", "dates", "report", "sql")
    bank.router.model_copy = lambda update: update
    bank.model_copy = lambda update: SimpleNamespace(**vars(bank) | update)
    return EchoService(bank)


def ask(http: TestClient, text: str = "hello", key: str = A, **changes: Any) -> Any:
    return http.post("/chat/completions", json=chat(text, **changes), headers={"authorization": f"Bearer {key}"})


def test_a_recipe_is_a_model(http: TestClient, service: EchoService) -> None:
    for name in ("report", f"{BASE}:report"):
        answer = ask(http, model=name)
        assert answer.headers["x-dlp-adapters"] == "sql=0.50,dates=-0.25"
        reply = answer.json()
        assert reply["model"] == name
        assert reply["dlp"]["reason"] == "named"
        assert reply["dlp"]["spans"] == [{"start": 0, "end": 8, "mix": REPORT, "recipes": ["report"]}]
    explicit = [{"name": "sql", "weight": 0.5}, {"name": "dates", "weight": -0.25}]
    assert "recipes" not in ask(http, dlp={"adapters": explicit}).json()["dlp"]["spans"][0]
    assert service.asked[0].mix == service.asked[-1].mix == Mix.of({"sql": 0.5, "dates": -0.25})


def test_a_recipe_in_a_stream_is_named_in_the_last_chunk(http: TestClient) -> None:
    lines = [line for line in ask(http, model="report", stream=True).text.splitlines() if line.startswith("data: {")]
    assert json.loads(lines[-1].removeprefix("data: "))["dlp"]["spans"][0]["recipes"] == ["report"]


def test_the_router_chooses_a_recipe_as_it_chooses_an_adapter(http: TestClient) -> None:
    alone = ask(http, "report").json()["dlp"]
    assert (alone["reason"], alone["spans"][0]["mix"], alone["spans"][0]["recipes"]) == ("routed", REPORT, ["report"])
    mixed = ask(http, "report report report sql").json()["dlp"]["spans"][0]
    assert [(part["adapter"], part["weight"]) for part in mixed["mix"]] == [
        ("sql", pytest.approx(0.75 * 0.5 + 0.25)),
        ("dates", pytest.approx(-0.75 * 0.25)),
    ]
    route = http.post("/route", json={"input": "report report report sql"}).json()
    assert route["recipes"] == ["report"]
    assert route["mix"] == mixed["mix"]
    assert route["probabilities"] == {"report": 0.75, "sql": 0.25}


def test_models_lists_a_recipe_with_what_it_is(http: TestClient) -> None:
    listed = {model["id"]: model for model in http.get("/models").json()["data"]}
    assert list(listed) == ["auto", BASE, "sql", "cron", "dates", "report"]
    assert listed["report"] | {"created": 0} == {
        "id": "report",
        "object": "model",
        "created": 0,
        "owned_by": "dlp",
        "parent": BASE,
        "description": "Dated queries.",
        "recipe": [{"adapter": "sql", "weight": 0.5}, {"adapter": "dates", "weight": -0.25}],
    }
    assert http.get("/models/report").json() == listed["report"]


def test_a_request_that_mixes_fewer_adapters_does_without_the_recipe(http: TestClient) -> None:
    one = {"dlp": {"max_adapters": 1}}
    assert ask(http, "report", **one).json()["dlp"]["reason"] == "none_of_these"
    assert ask(http, "report sql", **one).headers["x-dlp-adapters"] == "sql=1.00"
    message = refused(ask(http, model="report", **one), 400, "model", "invalid_value")
    assert message == "recipe 'report' mixes 2 adapters; at most 1 are mixed"


def test_a_recipe_is_no_part_of_an_explicit_mix(http: TestClient) -> None:
    message = refused(ask(http, dlp={"adapters": [{"name": "report"}]}), 400, "dlp.adapters", "invalid_value")
    assert message.startswith("'report' is a recipe; name it as the model")


@pytest.fixture
def keyed(service: EchoService, tmp_path: Path) -> Iterator[TestClient]:
    keys = tmp_path / "keys.yaml"
    may = [{"name": "a", "key": A, "adapters": ["sql", "da*"]}, {"name": "b", "key": B, "adapters": ["sql", "report"]}]
    keys.write_text(json.dumps({"keys": may}))
    api = create_app(service, routing=RoutingArgs(max_adapters=3), limits=LIMITS, access=Access(keys_file=keys))
    with TestClient(api, raise_server_exceptions=False, base_url="http://server/v1") as client:
        yield client


def test_a_key_that_may_not_use_one_of_its_adapters_may_not_use_a_recipe(keyed: TestClient) -> None:
    def models(key: str) -> list[str]:
        listed = keyed.get("/models", headers={"authorization": f"Bearer {key}"}).json()["data"]
        return [model["id"] for model in listed]

    assert models(A) == ["auto", BASE, "sql", "dates", "report"]
    assert ask(keyed, model="report", key=A).json()["dlp"]["spans"][0]["mix"] == REPORT
    assert ask(keyed, "report", key=A).json()["dlp"]["reason"] == "routed"
    # B's keys file names the recipe, and not all of its adapters
    assert models(B) == ["auto", BASE, "sql"]
    refused(ask(keyed, model="report", key=B), 404, "model", "model_not_found")
    refused(ask(keyed, dlp={"adapters": [{"name": "report"}]}, key=B), 404, "dlp.adapters", "model_not_found")
    assert ask(keyed, "report", key=B).json()["dlp"]["reason"] == "none_of_these"


def test_a_recipe_serves_while_the_router_is_away(service: EchoService) -> None:
    async def nobody(texts: Any) -> Any:
        raise RouterUnavailable("no router replica answered within 5 s")

    class Away(EchoService):
        async def decide(self, picked: Any, options: Any, texts: Any) -> Decision:
            return await decide(picked.bank, options, texts, nobody)

    away = Away(service.manifest)
    api = create_app(away, routing=RoutingArgs(fallback="report"), limits=LIMITS, access=Access())
    with TestClient(api, raise_server_exceptions=False, base_url="http://server/v1") as client:
        reply = ask(client).json()["dlp"]
    assert (reply["reason"], reply["spans"][0]["recipes"]) == ("router_unavailable", ["report"])
