"""The HTTP surface: what is answered, by which mix, and what happens when something behind it fails."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from deployments.args import RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from dlp_core.errors import AdapterUnavailable, EngineFailed, EngineFull, PromptTooLong
from dlp_core.mix import Mix, WeightRule, select_top_p
from tests.support.echo import BASE, LIMITS, EchoService, chat, manifest, refused
from tests.support.waiting import HANG_S

# --- answers


def test_a_chat_through_the_openai_client(client: openai.OpenAI, service: EchoService) -> None:
    answer = client.chat.completions.with_raw_response.create(**chat("sql sql sql sql cron"))
    assert answer.headers["x-dlp-adapters"] == "sql=0.80,cron=0.20"
    reply = answer.parse()
    assert reply.choices[0].message.content == "sql sql sql sql cron "
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (7, 5, 12)
    assert reply.model_extra is not None
    assert reply.model_extra["dlp"] == {
        "bank": "b1",
        "router": "r1",
        "confidence": 0.8,
        "reason": "routed",
        "spans": [
            {
                "start": 0,
                "end": 12,
                "mix": [
                    {"adapter": "sql", "weight": 51 / 64, "digest": "sha256:sql"},
                    {"adapter": "cron", "weight": 13 / 64, "digest": "sha256:cron"},
                ],
            }
        ],
    }
    assert service.asked[0].bank == "b1"


def test_a_chat_in_a_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**chat("two words"), stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "two words "
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert ["dlp" in (chunk.model_extra or {}) for chunk in chunks] == [False, False, False, True]
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_the_last_chunk_of_a_stream_that_asks_for_it(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**chat(), stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9
    assert "dlp" in (chunks[-1].model_extra or {})
    assert all(chunk.usage is None and "dlp" not in (chunk.model_extra or {}) for chunk in chunks[:-1])


def test_the_stream_ends_with_done(http: TestClient) -> None:
    answer = http.post("/chat/completions", json=chat(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-dlp-adapters"] == "sql=1.00"
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")


def test_line_separators_in_the_text_do_not_break_the_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**chat("a\u2028b\x85c 語"), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a\u2028b\x85c 語 "


def test_completions(client: openai.OpenAI, service: EchoService) -> None:
    reply = client.completions.create(model="auto", prompt="make sql")
    assert (reply.object, reply.choices[0].text) == ("text_completion", "make sql ")
    assert (
        "".join(c.choices[0].text for c in client.completions.create(model="auto", prompt="a b", stream=True)) == "a b "
    )
    assert [request.source for request in service.asked] == ["make sql", "a b"]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["auto", BASE, "sql", "cron", "dates"]
    assert client.models.retrieve("sql").model_extra == {"parent": BASE, "description": "Writes queries."}
    assert client.models.retrieve("cron").model_extra == {"parent": BASE}
    assert client.models.retrieve("dates").model_extra == {"parent": BASE, "alora_invocation_tokens": [5, 6]}
    assert client.models.retrieve(BASE).id == BASE
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_a_bank_without_a_router_cannot_route(http: TestClient, service: EchoService) -> None:
    service.manifest = manifest(router=None)
    assert "auto" not in {model["id"] for model in http.get("/models").json()["data"]}
    assert "no router" in refused(http.post("/chat/completions", json=chat()), 404, "model", "model_not_found")
    assert http.post("/chat/completions", json=chat(model="sql")).status_code == 200


def test_bank_and_health(http: TestClient, service: EchoService) -> None:
    assert http.get("/bank").json() == {"version": "b1"}
    assert http.get("http://server/health").json() == {"status": "ok", "bank": "b1"}
    service.manifest = None
    for answer in (http.get("http://server/health"), http.get("/models"), http.post("/chat/completions", json=chat())):
        assert "connection refused" in refused(answer, 503, None, "store_unavailable")
        assert answer.headers["retry-after"] == "5"


def test_the_api_describes_its_bodies(http: TestClient) -> None:
    schema = http.get("http://server/openapi.json").json()
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    assert {"model", "messages", "dlp"} <= set(schema["components"]["schemas"]["ChatRequest"]["properties"])
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(schema)))
    assert references <= set(schema["components"]["schemas"])
    assert http.get("http://server/docs").status_code == 200


# --- which mix


@pytest.mark.parametrize(
    ("model", "header", "reason"),
    [
        ("auto", "sql=1.00", "routed"),
        ("sql", "sql=1.00", "named"),
        ("cron", "cron=1.00", "named"),
        (f"{BASE}:cron", "cron=1.00", "named"),
        (BASE, "base", "base"),
    ],
)
def test_the_model_chooses(http: TestClient, model: str, header: str, reason: str) -> None:
    answer = http.post("/chat/completions", json=chat(model=model))
    assert (answer.headers["x-dlp-adapters"], answer.json()["dlp"]["reason"]) == (header, reason)
    assert answer.json()["model"] == model


@pytest.mark.parametrize("model", ["nope", "SQL", "org/other:sql", "sql:sql", f"{BASE}:", f"{BASE}:auto", " sql"])
def test_an_unknown_model_is_404(http: TestClient, model: str) -> None:
    for path in ("/chat/completions", "/route"):
        assert "/v1/models" in refused(http.post(path, json=chat(model=model)), 404, "model", "model_not_found")


def test_options_steer_the_router(http: TestClient) -> None:
    text = "sql sql sql cron cron dates"
    for options, header in [
        ({}, "sql=0.50,cron=0.33,dates=0.17"),
        ({"max_adapters": 2}, "sql=0.59,cron=0.41"),  # multiples of 1/64
        ({"max_adapters": 2, "exact_weights": True}, "sql=0.60,cron=0.40"),
        ({"top_p": 0.4}, "sql=1.00"),
        ({"top_p": 0.4, "min_confidence": 0.5}, "sql=1.00"),
        ({"weights": "softmax"}, "sql=0.39,cron=0.33,dates=0.28"),
        ({"weights": "softmax", "max_adapters": 2}, "sql=0.55,cron=0.45"),
        ({"weights": "renormalise", "max_adapters": 2}, "sql=0.59,cron=0.41"),
        ({"min_confidence": 0.6}, "base"),
        ({"adapters": [{"name": "dates", "weight": 0.25}, {"name": "sql", "weight": -0.5}]}, "sql=-0.50,dates=0.25"),
        ({"adapters": [{"name": "dates"}]}, "dates=1.00"),
        ({"adapters": []}, "base"),
        ({"granularity": "request", "top_p": None}, "sql=0.50,cron=0.33,dates=0.17"),
    ]:
        answer = http.post("/chat/completions", json=chat(text, dlp=options))
        assert answer.headers["x-dlp-adapters"] == header, options


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (chat("make sql"), "routed"),
        (chat("hello"), "none_of_these"),
        (chat("sql cron", dlp={"min_confidence": 0.9}), "low_confidence"),
        (chat(model="cron"), "named"),
        (chat(model=BASE), "base"),
        (chat(dlp={"adapters": [{"name": "sql", "weight": 0.5}]}), "explicit"),
        ({"model": "auto", "prompt": "sql dates"}, "routed"),
    ],
)
def test_route_and_completions_agree(http: TestClient, service: EchoService, body: dict[str, Any], reason: str) -> None:
    route = http.post("/route", json=body).json()
    assert service.asked == []
    reply = http.post("/completions" if "prompt" in body else "/chat/completions", json=body).json()["dlp"]
    assert route["reason"] == reply["reason"] == reason
    assert route["mix"] == reply["spans"][0]["mix"]
    assert [route[key] for key in ("bank", "router", "confidence")] == [
        reply[key] for key in ("bank", "router", "confidence")
    ]


def test_route_takes_a_bare_text(http: TestClient) -> None:
    for key in ("text", "input"):
        reply = http.post("/route", json={key: "sql sql cron"}).json()
        assert reply["model"] == "auto"
        assert reply["probabilities"] == {"sql": pytest.approx(2 / 3), "cron": pytest.approx(1 / 3)}
        assert reply["none_threshold"] == 0.5
        assert reply["margin"] == 1.0
        assert reply["explains"] == "sql"
        assert {word["text"] for word in reply["words"]} == {"sql", "cron"}
        assert (reply["top_p"], reply["max_adapters"], reply["reason"]) == (0.9, 3, "routed")
        assert reply["weights"] == "renormalise"
    assert http.post("/route", json={"text": ""}).json()["reason"] == "none_of_these"
    for body in ({}, {"text": "a", "prompt": "b"}, {"text": "a", "messages": []}):
        assert "exactly one" in http.post("/route", json=body).json()["error"]["message"]


def test_route_shows_the_passages_of_a_request_by_sentence(http: TestClient) -> None:
    text = "sql all users\ncron at noon"
    reply = http.post("/route", json={"text": text, "dlp": {"granularity": "sentence"}}).json()
    assert [(text[part["start"] : part["end"]], part["mix"][0]["adapter"]) for part in reply["passages"]] == [
        ("sql all users\n", "sql"),
        ("cron at noon", "cron"),
    ]
    assert "passages" not in http.post("/route", json={"text": text}).json()
    named = {"model": "sql", "prompt": text, "dlp": {"granularity": "sentence"}}
    assert "passages" not in http.post("/route", json=named).json(), "the router was not asked"


def test_the_server_says_how_adapters_are_weighted_unless_the_request_does(service: EchoService) -> None:
    api = create_app(service, routing=RoutingArgs(weights="softmax"), limits=LIMITS, access=Access())
    text, probabilities = "sql sql sql cron cron dates", {"sql": 3 / 6, "cron": 2 / 6, "dates": 1 / 6}
    with TestClient(api, base_url="http://server/v1") as http:
        cases: list[tuple[str | None, WeightRule]] = [(None, "softmax"), ("renormalise", "renormalise")]
        for asked, rule in cases:
            reply = http.post("/route", json={"text": text, "dlp": {"weights": asked}}).json()
            assert reply["weights"] == rule
            mix = Mix.of({part["adapter"]: part["weight"] for part in reply["mix"]})
            assert mix == select_top_p(probabilities, weights=rule).on_grid()
            exact = http.post("/route", json={"text": text, "dlp": {"weights": asked, "exact_weights": True}}).json()
            assert {part["adapter"]: part["weight"] for part in exact["mix"]} == pytest.approx(
                {part.name: part.weight for part in select_top_p(probabilities, weights=rule).adapters}
            )


def test_the_router_reads_the_last_user_turn(http: TestClient) -> None:
    turns = [{"role": "user", "content": "sql"}, {"role": "assistant", "content": "dates"}]
    body = chat(messages=[*turns, {"role": "user", "content": "cron"}])
    assert http.post("/chat/completions", json=body).headers["x-dlp-adapters"] == "cron=1.00"


# --- trouble behind the API


def test_a_full_queue_is_429_with_retry_after_also_for_a_stream(client: openai.OpenAI, service: EchoService) -> None:
    service.fail = EngineFull("64 requests wait, its limit", retry_after=1.2)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(**chat(), stream=stream)
        assert error.value.response.headers["retry-after"] == "2"
        assert error.value.code == "queue_full"
    assert service.closed == 2


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PromptTooLong("too long"), 400, "context_length_exceeded"),
        (AdapterUnavailable("adapter 'sql' cannot be fetched"), 503, "adapter_unavailable"),
        (EngineFailed("gone"), 503, "engine_failed"),
        (RuntimeError("secret detail"), 500, "internal_error"),
    ],
)
def test_an_error_before_the_first_token_keeps_its_status(
    http: TestClient, service: EchoService, error: Exception, status: int, code: str
) -> None:
    service.fail = error
    for stream in (False, True):
        message = refused(http.post("/chat/completions", json=chat(stream=stream)), status, None, code)
        assert "secret" not in message


def test_an_error_after_the_first_token_ends_the_stream(client: openai.OpenAI, service: EchoService) -> None:
    service.fail, service.fail_after = EngineFailed("the replica stopped"), 1
    stream = client.chat.completions.create(**chat("one two"), stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "one "]
    with pytest.raises(openai.APIError, match="the replica stopped"):
        next(stream)
    assert service.closed == 1


def test_a_broken_stream_has_no_done(http: TestClient, service: EchoService) -> None:
    service.fail, service.fail_after = RuntimeError("secret detail"), 1
    answer = http.post("/chat/completions", json=chat("one two", stream=True))
    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert last["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


def test_a_request_out_of_time_is_504(http: TestClient, service: EchoService) -> None:
    service.stall_after, service.clock_leaps = 0, True
    refused(http.post("/chat/completions", json=chat()), 504, None, "deadline_exceeded")
    refused(http.post("/chat/completions", json=chat(stream=True)), 504, None, "deadline_exceeded")
    assert service.closed == 2


def test_a_stream_out_of_time_ends_with_an_error(http: TestClient, service: EchoService) -> None:
    service.stall_after, service.clock_leaps = 1, True
    answer = http.post("/chat/completions", json=chat("a b c d e", stream=True))
    assert '"content":"a "' in answer.text
    assert "deadline_exceeded" in answer.text
    assert "[DONE]" not in answer.text
    assert service.closed == 1


async def test_a_client_that_goes_away_closes_the_generation(service: EchoService) -> None:
    service.stall_after = 1
    api = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access())
    body = json.dumps(chat("a b", stream=True)).encode()
    sent: list[bytes] = []
    gone = asyncio.Event()
    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if b'"a "' in sent[-1]:
            gone.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    await asyncio.wait_for(api(scope, receive, send), HANG_S)
    assert service.closed == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("place", "param"),
    [
        (lambda n: {"temperature": n}, "temperature"),
        (lambda n: {"max_tokens": n}, "max_tokens"),
        (lambda n: {"dlp": {"top_p": n}}, "dlp.top_p"),
        (lambda n: {"dlp": {"adapters": [{"name": "sql", "weight": n}]}}, "dlp.adapters.0.weight"),
    ],
)
def test_a_number_that_is_none_is_refused_by_its_field(
    http: TestClient, place: Callable[[float], dict[str, Any]], param: str, number: float
) -> None:
    body = json.dumps(chat(**place(number))).encode()  # Python writes NaN and Infinity as they are
    answer = http.post("/chat/completions", content=body, headers={"content-type": "application/json"})
    refused(answer, 400, param, "invalid_value")


@pytest.mark.parametrize("content", ["", "  \n", [{"type": "text", "text": ""}]])
def test_an_empty_last_turn_is_refused(http: TestClient, content: object) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": content}]}
    refused(http.post("/chat/completions", json=body), 400, "messages", "invalid_value")
