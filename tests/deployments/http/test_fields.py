"""What a request may say: what is accepted, what is ignored, and what is refused and how. Prompts and formats have
files of their own."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from deployments.args import RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from deployments.http.requests import ChatRequest, CompletionRequest
from dlp_core.engine.request import Sampling
from dlp_core.errors import EngineFailed
from tests.support.echo import BASE, LIMITS, EchoService, chat, refused


def test_parameters_reach_the_backbone(http: TestClient, service: EchoService) -> None:
    http.post("/chat/completions", json=chat())
    http.post("/completions", json={"model": "auto", "prompt": "a"})
    http.post(
        "/chat/completions",
        json=chat(max_completion_tokens=9, temperature=1, top_p=0.5, top_k=3, stop=["a", "b"], seed=None),
    )
    plain, completion, full = service.asked
    assert (plain.sampling, plain.stop) == (Sampling(), ())
    assert completion.sampling == Sampling(max_tokens=16)
    assert (full.sampling, full.stop) == (Sampling(max_tokens=9, temperature=1.0, top_p=0.5, top_k=3), ("a", "b"))
    assert len({request.request_id for request in service.asked}) == 3


def test_every_sampling_option_can_be_asked_for() -> None:
    assert {field.name for field in fields(Sampling)} <= set(ChatRequest.model_fields) & set(
        CompletionRequest.model_fields
    )


def test_the_rarer_parameters_reach_the_backbone(http: TestClient, service: EchoService) -> None:
    rare = {
        "min_tokens": 2,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -1.0,
        "seed": 7,
        "ignore_eos": True,
    }
    http.post("/chat/completions", json=chat(logprobs=True, top_logprobs=3, **rare))
    http.post("/chat/completions", json=chat(logprobs=True))
    http.post("/completions", json={"model": "auto", "prompt": "a", "logprobs": 0})
    http.post("/completions", json={"model": "auto", "prompt": "a"})
    assert [request.sampling.logprobs for request in service.asked] == [3, 0, 0, None]
    assert service.asked[0].sampling == Sampling(logprobs=3, **rare)


@pytest.mark.parametrize(
    ("changes", "routed"),
    [
        ({}, True),
        ({"model": BASE}, False),
        ({"model": "sql"}, False),
        ({"dlp": {"granularity": "sentence", "adapters": [{"name": "sql"}]}}, False),
        ({"dlp": {"granularity": "request"}}, False),
    ],
)
def test_sentences_are_routed_where_the_router_decides(
    http: TestClient, service: EchoService, changes: dict[str, Any], routed: bool
) -> None:
    asked = {"granularity": "sentence", "top_p": 0.6, "weights": "softmax", "min_confidence": 0.2}
    body = {"dlp": asked} | changes
    assert http.post("/chat/completions", json=chat(**body)).status_code == 200
    options = service.asked[0].by_sentence
    assert (options is not None) == routed
    if options is not None:
        assert (options.top_p, options.max_adapters, options.min_confidence) == (0.6, 3, 0.2)
        assert options.weights == "softmax"


@pytest.mark.parametrize(("granularity", "by_task"), [("sentence", False), ("task", True)])
def test_tasks_are_answered_one_by_one_where_that_is_asked(
    http: TestClient, service: EchoService, granularity: str, by_task: bool
) -> None:
    assert http.post("/chat/completions", json=chat(dlp={"granularity": granularity})).status_code == 200
    options = service.asked[0].by_sentence
    assert options is not None
    assert options.by_task == by_task


def test_a_server_may_answer_task_by_task_unless_the_request_says_otherwise(service: EchoService) -> None:
    api = create_app(service, routing=RoutingArgs(granularity="task"), limits=LIMITS, access=Access())
    with TestClient(api, base_url="http://server/v1") as http:
        for asked in ({}, {"granularity": "request"}):
            assert http.post("/chat/completions", json=chat(dlp=asked)).status_code == 200
    first, second = (request.by_sentence for request in service.asked)
    assert first is not None
    assert first.by_task
    assert second is None


@pytest.mark.parametrize(
    ("asked", "runs"), [({}, "always"), ({"activation": "turn"}, "turn"), ({"activation": "always"}, "always")]
)
def test_a_mix_may_begin_at_the_last_turn(
    http: TestClient, service: EchoService, asked: dict[str, Any], runs: str
) -> None:
    assert http.post("/chat/completions", json=chat(dlp=asked)).status_code == 200
    assert service.asked[0].activation == runs
    assert http.post("/route", json=chat(dlp=asked)).json()["activation"] == runs


def test_several_choices(client: openai.OpenAI, service: EchoService) -> None:
    reply = client.chat.completions.create(**chat("sql it", n=3, seed=5, temperature=0.5))
    assert [(choice.index, choice.message.content) for choice in reply.choices] == [(i, "sql it ") for i in range(3)]
    assert [request.sampling.seed for request in service.asked] == [5, 6, 7]
    assert len({request.request_id for request in service.asked}) == 3
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 6)
    assert reply.model_extra is not None
    assert [spans[0]["end"] for spans in reply.model_extra["dlp"]["choices"]] == [9, 9, 9]


def test_several_choices_in_a_stream(client: openai.OpenAI, service: EchoService) -> None:
    chunks = list(client.chat.completions.create(**chat("a b c", n=2, stream=True)))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "a b c ", 1: "a b c "}
    assert [chunk.choices[0].finish_reason for chunk in chunks].count("stop") == 2
    assert [chunk.model_extra is not None and "dlp" in chunk.model_extra for chunk in chunks] == [
        *[False] * (len(chunks) - 1),
        True,
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_one_choice_that_fails_closes_the_others(http: TestClient, service: EchoService, stream: bool) -> None:
    service.fail, service.fail_after, service.fail_number, service.stall_after = EngineFailed("gone"), 1, 0, 1
    answer = http.post("/chat/completions", json=chat("a b c d", n=4, stream=stream))
    assert answer.status_code == (200 if stream else 503)
    assert "gone" in answer.text
    assert "[DONE]" not in answer.text
    assert service.closed == 4


def test_log_probabilities(client: openai.OpenAI, service: EchoService) -> None:
    chat_reply = client.chat.completions.create(**chat("sql é", logprobs=True, top_logprobs=1))
    assert chat_reply.choices[0].logprobs is not None
    first, second = chat_reply.choices[0].logprobs.content or ()
    assert (first.token, first.logprob, first.bytes) == ("sql ", -0.5, list(b"sql "))
    assert second.bytes == list("é ".encode())
    assert [(other.token, other.logprob) for other in second.top_logprobs] == [("é ", -0.5)]
    text_reply = client.completions.create(model="auto", prompt="sql it", logprobs=1)
    found = text_reply.choices[0].logprobs
    assert found is not None
    assert (found.tokens, found.token_logprobs, found.text_offset) == (["sql ", "it "], [-0.5, -0.5], [0, 4])
    assert found.top_logprobs == [{"sql ": -0.5}, {"it ": -0.5}]
    assert client.chat.completions.create(**chat()).choices[0].logprobs is None
    streamed = client.chat.completions.create(**chat("a b", logprobs=True, stream=True))
    contents = [chunk.choices[0].logprobs.content for chunk in streamed if chunk.choices[0].logprobs]
    assert [one.token for content in contents for one in content or ()] == ["a ", "b "]


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 1, "tools": [], "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False},
        {"response_format": {"type": "text"}, "store": False, "stop": "x", "tool_choice": "none"},
        {"user": "u", "metadata": {"a": "b"}, "prompt_cache_key": "k", "safety_identifier": "s"},
        {"max_tokens": 5, "max_completion_tokens": 5, "seed": 3, "top_logprobs": 0},
        {"max_tokens": None, "tools": None, "dlp": None, "stream": None, "stop": None, "temperature": None},
    ],
)
def test_what_changes_nothing_is_accepted(http: TestClient, changes: dict[str, Any]) -> None:
    assert http.post("/chat/completions", json=chat(**changes)).status_code == 200


def test_text_parts_and_developer_messages(http: TestClient, service: EchoService) -> None:
    parts = [{"type": "text", "text": "make "}, {"type": "text", "text": "sql"}]
    messages = [{"role": "developer", "content": "d"}, {"role": "user", "content": parts}]
    assert http.post("/chat/completions", json=chat(messages=messages)).headers["x-dlp-adapters"] == "sql=1.00"
    assert not isinstance(service.asked[0].source, str)
    assert [(turn.role, turn.content) for turn in service.asked[0].source] == [("system", "d"), ("user", "make sql")]


def test_an_answer_may_be_passed_back_as_a_turn(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**chat())
    turns = [first.choices[0].message, first.choices[0].message.model_dump(), {"role": "user", "content": "x"}]
    assert client.chat.completions.create(model="auto", messages=turns).choices[0].message.content == "x "  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"functions": [{}]}, "functions"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {}}, "prediction"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(http: TestClient, changes: dict[str, Any], param: str) -> None:
    message = refused(http.post("/chat/completions", json=chat(**changes)), 400, param, "unsupported_parameter")
    assert param in message
    assert "not supported" in message


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"foo": 1}, "foo"),
        ({"temprature": 0.5}, "temprature"),
        ({"best_of": 1}, "best_of"),
        ({"dlp": {"topp": 0.5}}, "dlp.topp"),
        ({"dlp": {"adapters": [{"name": "sql", "wieght": 1}]}}, "dlp.adapters.0.wieght"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ],
)
def test_an_unknown_field_is_refused_by_name(http: TestClient, changes: dict[str, Any], param: str) -> None:
    refused(http.post("/chat/completions", json=chat(**changes)), 400, param, "unknown_parameter")


TURN = {"role": "user", "content": "about sql"}
MESSAGES = [
    [TURN | {"name": "alice"}],
    [TURN | {"name": None, "tool_call_id": None, "refusal": None, "anything": None}],
    [{"role": "user", "content": [{"type": "text", "text": "about sql", "cache_control": {"type": "ephemeral"}}]}],
]


@pytest.mark.parametrize(
    "changes",
    [
        *({"messages": messages} for messages in MESSAGES),
        {"foo": None, "reasoning_effort": "none", "verbosity": "medium"},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"seed": 2**64 - 1, "n": 2},
        {"seed": -(2**63)},
    ],
)
def test_what_clients_send_without_meaning_anything_is_accepted(
    http: TestClient, service: EchoService, changes: dict[str, Any]
) -> None:
    answer = http.post("/chat/completions", json=chat() | changes)
    assert answer.status_code == 200
    assert "x-dlp-ignored" not in answer.headers
    assert all(-(2**63) <= (request.sampling.seed or 0) < 2**63 for request in service.asked)


def test_an_unknown_field_of_a_message_is_ignored_and_named(http: TestClient) -> None:
    turns = [TURN | {"x-märk\n": 1}, {"role": "assistant", "content": "yes", "reasoning": "because"}, TURN]
    answer = http.post("/chat/completions", json=chat() | {"messages": turns})
    assert answer.status_code == 200
    assert answer.headers["x-dlp-ignored"] == "messages.0.x-m_rk_,messages.1.reasoning"


def test_strict_fields_refuse_it() -> None:
    limits = LIMITS.model_copy(update={"strict_fields": True})
    http = TestClient(create_app(EchoService(), routing=RoutingArgs(), limits=limits, access=Access()))
    body = chat() | {"messages": [TURN | {"nme": "y"}]}
    refused(http.post("/v1/chat/completions", json=body), 400, "messages.0.nme", "unknown_parameter")


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models", "/v1/models/sql", "/v1/bank"])
def test_a_head_is_answered(http: TestClient, path: str) -> None:
    answer = http.head(f"http://server{path}")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_slash_at_the_end_changes_nothing(http: TestClient) -> None:
    assert http.get("/models/", follow_redirects=False).json() == http.get("/models").json()
    assert http.post("/chat/completions/", json=chat(), follow_redirects=False).status_code == 200
    assert http.get("http://server/", follow_redirects=False).json()["name"] == "dlp-serve"


def test_pages_of_configured_origins_may_call_it() -> None:
    origin = "https://chat.example.com"
    access = Access(origins=(origin,))
    http = TestClient(create_app(EchoService(), routing=RoutingArgs(), limits=LIMITS, access=access))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    assert http.options("/v1/chat/completions", headers=asks | {"origin": origin}).status_code == 200
    assert http.options("/v1/chat/completions", headers=asks | {"origin": "https://evil.example"}).status_code == 400
    answer = http.post("/v1/chat/completions", json=chat(), headers={"origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-dlp-adapters" in answer.headers["access-control-expose-headers"] or (
        answer.headers["access-control-expose-headers"] == "*"
    )


def test_without_origins_no_page_may(http: TestClient) -> None:
    answer = http.post("/chat/completions", json=chat(), headers={"origin": "https://chat.example.com"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(http: TestClient, field: str) -> None:
    body = chat()
    del body[field]
    refused(http.post("/chat/completions", json=body), 400, field, "missing_required_parameter")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content"),
        ({"dlp": []}, "dlp"),
        ({"dlp": {"top_p": 0}}, "dlp.top_p"),
        ({"dlp": {"top_p": 1.5}}, "dlp.top_p"),
        ({"dlp": {"top_p": True}}, "dlp.top_p"),
        ({"dlp": {"max_adapters": 0}}, "dlp.max_adapters"),
        ({"dlp": {"max_adapters": 4}}, "dlp.max_adapters"),
        ({"dlp": {"min_confidence": 2}}, "dlp.min_confidence"),
        ({"dlp": {"granularity": "token"}}, "dlp.granularity"),
        ({"dlp": {"activation": "sentence"}}, "dlp.activation"),
        ({"dlp": {"weights": "softMax"}}, "dlp.weights"),
        ({"dlp": {"weights": True}}, "dlp.weights"),
        ({"dlp": {"adapters": [{"name": "sql"}, {"name": "sql", "weight": 0.5}]}}, "dlp.adapters"),
        ({"dlp": {"adapters": [{"name": "sql", "weight": 17}]}}, "dlp.adapters"),
        ({"dlp": {"adapters": [{"name": "sql", "weight": True}]}}, "dlp.adapters.0.weight"),
        ({"dlp": {"adapters": [{"name": "sql"}, {"name": "cron"}], "max_adapters": 1}}, "dlp.adapters"),
        ({"dlp": {"adapters": [{"name": name} for name in "abcd"]}}, "dlp.adapters"),
        ({"model": "sql", "dlp": {"adapters": [{"name": "cron"}]}}, "dlp.adapters"),
    ],
)
def test_a_bad_value_is_refused_by_name(
    http: TestClient, service: EchoService, changes: dict[str, Any], param: str
) -> None:
    refused(http.post("/chat/completions", json=chat(**changes)), 400, param, "invalid_value")
    assert service.asked == []


def test_a_bad_model_of_route_is_refused(http: TestClient) -> None:
    refused(http.post("/route", json={"text": 5}), 400, "text", "invalid_value")
    refused(http.post("/route", json={"text": "a", "max_tokens": 5}), 400, "max_tokens", "unknown_parameter")
    refused(http.post("/route", json=chat(max_tokens=0)), 400, "max_tokens", "invalid_value")


def test_an_unknown_adapter_is_404(http: TestClient) -> None:
    body = chat(dlp={"adapters": [{"name": "nope", "weight": 1}]})
    assert "'nope'" in refused(http.post("/chat/completions", json=body), 404, "dlp.adapters", "model_not_found")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "auto", "messages": [], "max_tokens": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_json_object_is_400(http: TestClient, body: bytes) -> None:
    for path in ("/chat/completions", "/completions", "/route"):
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        refused(answer, 400, None, "invalid_value")


def test_a_number_that_overflows_is_refused(http: TestClient) -> None:
    body = json.dumps(chat(temperature=1)).replace('"temperature": 1', '"temperature": 1e999')
    assert http.post("/chat/completions", content=body).status_code == 400


def test_a_large_body_is_413(http: TestClient) -> None:
    body = json.dumps(chat("x" * 20_000)).encode()
    assert "20000 bytes" in refused(http.post("/chat/completions", content=body), 413, None, "request_too_large")
    halves = iter([body[:9_000], body[9_000:]])  # chunked: no content-length to go by
    refused(http.post("/chat/completions", content=halves), 413, None, "request_too_large")


def test_unknown_paths_and_methods_have_the_same_shape(http: TestClient) -> None:
    refused(http.get("/nope"), 404, None, "unknown_url")
    answer = http.get("/chat/completions")
    refused(answer, 405, None, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
