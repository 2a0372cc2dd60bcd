"""POST /v1/completions as older clients and evaluation harnesses use it: several prompts, token ids, echo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from deployments.args import LimitArgs, RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from deployments.http.prompts import MAX_PROMPTS
from deployments.http.replies import text_logprobs_json
from dlp_core.errors import EngineFailed
from dlp_core.generation.messages import Logprob, TokenIds, TokenText
from tests.support.echo import BASE, EchoService, refused

SQL, CRON, DATES = range(3)
"""Token ids of the echo's vocabulary."""


def complete(http: TestClient, prompt: object, **changes: Any) -> dict[str, Any]:
    answer = http.post("/completions", json={"model": "auto", "prompt": prompt} | changes)
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def test_one_prompt_in_a_list_is_a_prompt(http: TestClient) -> None:
    assert complete(http, ["a b"])["choices"][0]["text"] == "a b "


def test_each_prompt_is_routed_and_answered_by_itself(http: TestClient, service: EchoService) -> None:
    answer = http.post("/completions", json={"model": "auto", "prompt": ["make sql", "a cron job", "x"], "n": 2})
    assert answer.headers["x-dlp-adapters"] == "sql=1.00; cron=1.00; base"
    reply = answer.json()
    texts = [(choice["index"], choice["text"]) for choice in reply["choices"]]
    assert texts == [(0, "make sql "), (1, "make sql "), (2, "a cron job "), (3, "a cron job "), (4, "x "), (5, "x ")]
    assert reply["usage"] == {
        "prompt_tokens": 21,
        "completion_tokens": 12,
        "total_tokens": 33,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert [spans[0]["mix"] and spans[0]["mix"][0]["adapter"] for spans in reply["dlp"]["choices"]] == [
        "sql", "sql", "cron", "cron", [], [],
    ]  # fmt: skip
    assert [prompt["reason"] for prompt in reply["dlp"]["prompts"]] == ["routed", "routed", "none_of_these"]
    assert len({request.request_id for request in service.asked}) == 6


def test_the_seeds_of_a_prompt_do_not_depend_on_the_others(http: TestClient, service: EchoService) -> None:
    complete(http, ["a", "b"], n=2, seed=7)
    assert [request.sampling.seed for request in service.asked] == [7, 8, 7, 8]


def test_several_prompts_in_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="auto", prompt=["a b", "c sql"], stream=True, stream_options={"include_usage": True}
        )
    )
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "a b ", 1: "c sql "}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 14


def test_a_prompt_that_fails_ends_the_request(http: TestClient, service: EchoService) -> None:
    service.fail, service.fail_number = EngineFailed("gone"), 1
    answer = http.post("/completions", json={"model": "auto", "prompt": ["a", "b"]})
    assert answer.status_code == 503
    assert service.closed == 2


@pytest.mark.parametrize(("prompt", "texts"), [([SQL, CRON], ["sql cron "]), ([[SQL], [DATES]], ["sql ", "dates "])])
def test_a_prompt_may_be_token_ids(http: TestClient, service: EchoService, prompt: object, texts: list[str]) -> None:
    reply = complete(http, prompt)
    assert [choice["text"] for choice in reply["choices"]] == texts
    assert all(isinstance(request.source, TokenIds) for request in service.asked)
    assert service.asked[0].mix.names[0] == "sql"


def test_token_ids_are_read_only_where_the_router_needs_them(http: TestClient, service: EchoService) -> None:
    for changes in ({"model": "sql"}, {"model": BASE}, {"dlp": {"adapters": [{"name": "sql"}]}}):
        before = service.decoded
        complete(http, [SQL], **changes)
        assert service.decoded == before + 1  # the echo's answer, not the route


def test_texts_and_token_ids_may_be_mixed(http: TestClient) -> None:
    assert [choice["text"] for choice in complete(http, ["a", [CRON]])["choices"]] == ["a ", "cron "]


@pytest.mark.parametrize(
    "prompt",
    ["", [], [[]], ["a", ""], [1, "a"], [1.5], [True], [-1], [2**31], [[1], [True]], 5, {"a": 1}, ["a"] * 129],
)
def test_a_bad_prompt_is_refused(http: TestClient, service: EchoService, prompt: object) -> None:
    refused(http.post("/completions", json={"model": "auto", "prompt": prompt}), 400, "prompt", "invalid_value")
    assert service.asked == []


def test_prompts_and_choices_together_have_a_limit(http: TestClient) -> None:
    body = {"model": "auto", "prompt": ["a"] * (MAX_PROMPTS // 2), "n": 3}
    assert str(MAX_PROMPTS) in refused(http.post("/completions", json=body), 400, "n", "invalid_value")


def test_only_one_prompt_is_routed(http: TestClient) -> None:
    refused(http.post("/route", json={"prompt": ["a", "b"]}), 400, "prompt", "invalid_value")
    assert http.post("/route", json={"prompt": [SQL]}).json()["explains"] == "sql"


def test_echo_and_the_prompt_alone_reach_the_backbone(http: TestClient, service: EchoService) -> None:
    complete(http, "a", echo=True, logprobs=1, max_tokens=0)
    complete(http, "a", max_tokens=0)
    complete(http, "a", echo=False, add_special_tokens=False)
    asked = [(request.echo, request.prompt_only, request.add_special_tokens) for request in service.asked]
    assert asked == [(True, True, None), (False, True, None), (False, False, False)]
    assert service.asked[0].sampling.logprobs == 1


def test_a_token_without_a_probability_and_one_that_is_impossible_are_json() -> None:
    first = Logprob(TokenText("a", b"a", None), (), 0)
    likely = [TokenText("b", b"b", -0.1), TokenText("\ufffd", b"\xf0", -1.0), TokenText("\ufffd", b"\x9f", -3.0)]
    second = Logprob(likely[0], (*likely, TokenText("c", b"c", float("-inf"))), 1)
    reply = text_logprobs_json([first, second])
    assert reply["token_logprobs"] == [None, -0.1]
    assert reply["top_logprobs"] == [None, {"b": -0.1, "\ufffd": -1.0, "c": -9999.0}]
    json.dumps(reply, allow_nan=False)


def test_the_completions_of_a_key_count_against_its_limit(tmp_path: Path) -> None:
    key = "key-of-team-a-0123456789"
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{"name": "a", "key": key}]}))
    app = create_app(
        EchoService(),
        routing=RoutingArgs(),
        limits=LimitArgs(max_requests_per_key=4),
        access=Access(keys_file=tmp_path / "keys.json"),
    )
    with TestClient(app, base_url="http://server/v1", headers={"authorization": f"Bearer {key}"}) as http:
        for _ in range(3):
            complete(http, ["a", "b"], n=2)
            body = {"model": "auto", "prompt": ["a"] * 5}  # one more than will ever be free
            assert "4 completions" in refused(http.post("/completions", json=body), 400, "n", "invalid_value")
