"""Tools: what reaches the backbone, what is refused by name, and calls as OpenAI's client gathers them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel
from starlette.testclient import TestClient

from deployments.args import LogArgs, RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from deployments.http.tools import MAX_TOOLS, MAX_TOOLS_BYTES
from dlp_core.errors import InvalidRequest
from dlp_core.generation.messages import Delta, Finished, GenerationRequest, Piece
from dlp_core.mix import Span
from dlp_core.text.chat import Message
from dlp_core.text.tools import CallDelta, ToolCall, Tools
from tests.support.echo import LIMITS, EchoService, chat, refused

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "default": None}},
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "about sql"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "21 degrees"},
]
CALLS = (
    CallDelta(0, "", "call_a", "weather"),
    CallDelta(0, '{"city": '),
    CallDelta(0, '"Paris"}'),
    CallDelta(1, "{}", "call_b", "now"),
)
CALLED = [("call_a", "weather", '{"city": "Paris"}'), ("call_b", "now", "{}")]


class Caller(EchoService):
    """Answers with calls, after `text`."""

    text = ""
    refusal: Exception | None = None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[Piece, ...], None]:
        self.asked.append(request)
        if self.refusal is not None:
            raise self.refusal
        if self.text:
            yield (Delta(self.text),)
        for call in CALLS:
            yield (Delta("", (), (call,)),)
        yield (Finished("tool_calls", 7, 9, (Span(0, 16, request.mix),)),)


@pytest.fixture
def service() -> Caller:
    return Caller()


def said(calls: Sequence[Any] | None) -> list[tuple[str, str, str]]:
    return [(call.id, call.function.name, call.function.arguments) for call in calls or ()]


def test_tools_reach_the_backbone_as_templates_read_them(http: TestClient, service: Caller) -> None:
    given = [WEATHER, {"type": "function", "function": {"name": "now", "description": None, "strict": False}}]
    http.post("/chat/completions", json=chat(tools=given))
    http.post("/chat/completions", json=chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, n=2))
    named = {"type": "function", "function": {"name": "now"}}
    http.post("/chat/completions", json=chat(tools=TOOLS, tool_choice=named))
    http.post("/chat/completions", json=chat(tools=TOOLS, tool_choice="none", response_format={"type": "json_object"}))
    http.post("/chat/completions", json=chat(tools=[], tool_choice="auto"))
    strict = {"type": "function", "function": {"name": "now", "strict": False}}
    required = Tools((WEATHER, NOW), "required", parallel=False)
    assert [request.tools for request in service.asked] == [
        Tools((WEATHER, strict)),
        required,
        required,
        Tools((WEATHER, NOW), "required", "now"),
        Tools((WEATHER, NOW), "none"),
        None,
    ]


def test_what_openais_client_makes_of_a_model_is_accepted(client: openai.OpenAI, service: Caller) -> None:
    class Weather(BaseModel):
        """Where?"""

        city: str

    client.chat.completions.create(**chat(), tools=[pydantic_function_tool(Weather, name="weather")])
    tools = service.asked[0].tools
    assert tools is not None
    assert tools.schemas[0]["function"]["strict"] is True
    assert tools.schemas[0]["function"]["parameters"]["properties"]["city"]["type"] == "string"


def test_calls_and_results_are_turns(http: TestClient, service: Caller) -> None:
    answer = http.post("/chat/completions", json=chat(messages=TURNS))
    assert answer.headers["x-dlp-adapters"] == "sql=1.00"  # the last user turn, whatever came after it
    assert service.asked[0].source == (
        Message("user", "about sql"),
        Message("assistant", "", (ToolCall("call_1", "weather", '{"city": "Paris"}'),)),
        Message("tool", "21 degrees", tool_call_id="call_1", name="weather"),
    )
    parts = [*TURNS[:2], TURNS[2] | {"content": [{"type": "text", "text": "21"}], "name": None}]
    http.post("/chat/completions", json=chat(messages=parts))
    assert service.asked[1].source[-1] == Message("tool", "21", tool_call_id="call_1")


def test_schemas_do_not_route_and_results_do(http: TestClient) -> None:
    of_sql = {"type": "function", "function": {"name": "sql", "description": "sql sql sql"}}
    body = chat("cron", tools=[of_sql])
    assert http.post("/chat/completions", json=body).headers["x-dlp-adapters"] == "cron=1.00"
    assert http.post("/route", json=body).json()["mix"][0]["adapter"] == "cron"


def test_a_whole_answer_has_calls(client: openai.OpenAI, service: Caller) -> None:
    reply = client.chat.completions.create(**chat(n=2), tools=TOOLS)
    for choice in reply.choices:
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert said(choice.message.tool_calls) == CALLED
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 18
    service.text = "Let me look."
    assert client.chat.completions.create(**chat(), tools=TOOLS).choices[0].message.content == "Let me look."
    assert [request.stream for request in service.asked] == [False] * 3


@pytest.mark.parametrize("text", ["", "Let me look."])
def test_openais_client_gathers_the_calls_of_a_stream(client: openai.OpenAI, service: Caller, text: str) -> None:
    service.text = text
    with client.chat.completions.stream(**chat(n=2), tools=TOOLS) as stream:
        whole = stream.get_final_completion()
    for choice in whole.choices:
        assert (choice.finish_reason, choice.message.content or "") == ("tool_calls", text)
        assert said(choice.message.tool_calls) == CALLED
    assert service.asked[0].stream


def test_a_stream_says_id_and_name_once(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**chat(), tools=TOOLS, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 0, 0, 1]
    assert [(call.id, call.type, call.function and call.function.name) for call in calls] == [
        ("call_a", "function", "weather"),
        (None, None, None),
        (None, None, None),
        ("call_b", "function", "now"),
    ]
    assert [chunk.choices[0].delta.content for chunk in chunks[1:]] == [None] * 5
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_an_answer_with_calls_may_be_passed_back(client: openai.OpenAI, service: Caller) -> None:
    message = client.chat.completions.create(**chat(), tools=TOOLS).choices[0].message
    results = [{"role": "tool", "tool_call_id": identity, "content": "x"} for identity, _, _ in CALLED]
    for turn in (message, message.model_dump()):
        client.chat.completions.create(**chat(messages=[{"role": "user", "content": "x"}, turn, *results]))
        source = service.asked[-1].source
        assert isinstance(source, tuple)
        assert source[1].tool_calls == tuple(ToolCall(*call) for call in CALLED)


def function(**changes: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f"} | changes}]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["weather"]}, "tools.0"),
        ({"tools": [WEATHER | {"type": "custom"}]}, "tools.0.type"),
        ({"tools": function(name="")}, "tools.0.function.name"),
        ({"tools": function(name="a b")}, "tools.0.function.name"),
        ({"tools": function(name="x" * 65)}, "tools.0.function.name"),
        ({"tools": function(description=5)}, "tools.0.function.description"),
        ({"tools": function(parameters=[])}, "tools.0.function.parameters"),
        ({"tools": function(parameters={"type": "string"})}, "tools.0.function.parameters"),
        ({"tools": function(parameters={"properties": {}})}, "tools.0.function.parameters"),
        ({"tools": function(strict="yes")}, "tools.0.function.strict"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": 5}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "now", "x": 1}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [TURNS[0], TURNS[1] | {"tool_calls": [CALL | {"id": ""}]}]}, "messages.1.tool_calls.0.id"),
        (
            {"messages": [TURNS[0], TURNS[1] | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]}]},
            "messages.1.tool_calls.0.function.arguments",
        ),
        ({"messages": [TURNS[0], TURNS[1] | {"role": "user"}]}, "messages.1.tool_calls"),
        ({"messages": [TURNS[0] | {"tool_call_id": "x"}]}, "messages.0.tool_call_id"),
    ],
)
def test_what_is_malformed_is_named(http: TestClient, service: Caller, changes: dict[str, Any], param: str) -> None:
    refused(http.post("/chat/completions", json=chat(**changes)), 400, param, "invalid_value")
    assert service.asked == []


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_required_parameter"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "missing_required_parameter"),
        ({"tools": function(cache=1)}, "tools.0.function.cache", "unknown_parameter"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "tool", "tool_call_id": "x"}]}, "messages.0.content", "missing_required_parameter"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0.content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "missing_required_parameter"),
    ],
)
def test_what_is_missing_or_unknown_is_named(http: TestClient, changes: dict[str, Any], param: str, code: str) -> None:
    refused(http.post("/chat/completions", json=chat(**changes)), 400, param, code)


def test_a_schema_has_no_numbers_that_json_lacks(http: TestClient) -> None:
    body = json.dumps(chat(tools=function(parameters={"type": "object", "maximum": float("inf")})))
    refused(http.post("/chat/completions", content=body), 400, "tools", "invalid_value")


def test_there_are_limits() -> None:
    limits = LIMITS.model_copy(update={"max_body_bytes": 2**20})
    http = TestClient(create_app(EchoService(), routing=RoutingArgs(), limits=limits, access=Access()))
    many = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(MAX_TOOLS + 1)]
    answer = http.post("/v1/chat/completions", json=chat(tools=many))
    assert str(MAX_TOOLS) in refused(answer, 400, "tools", "invalid_value")
    answer = http.post("/v1/chat/completions", json=chat(tools=function(description="é" * (MAX_TOOLS_BYTES // 2))))
    assert str(MAX_TOOLS_BYTES) in refused(answer, 400, "tools", "invalid_value")
    assert http.post("/v1/chat/completions", json=chat(tools=many[1:])).status_code == 200


def test_an_unknown_field_of_a_call_is_ignored_and_named(http: TestClient) -> None:
    call = CALL | {"index": 0, "function": {"name": "weather", "arguments": "{}", "parsed_arguments": {}}}
    answer = http.post("/chat/completions", json=chat(messages=[*TURNS[:1], TURNS[1] | {"tool_calls": [call]}]))
    assert answer.status_code == 200
    assert answer.headers["x-dlp-ignored"] == (
        "messages.1.tool_calls.0.index,messages.1.tool_calls.0.function.parsed_arguments"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_backbone_that_finds_no_calls_refuses_before_anything_is_sent(
    http: TestClient, service: Caller, stream: bool
) -> None:
    service.refusal = InvalidRequest("tools: nobody reads calls here", param="tools")
    refused(http.post("/chat/completions", json=chat(tools=TOOLS, stream=stream)), 400, "tools", "invalid_value")


def test_logged_prompts_and_answers_have_the_calls(caplog: pytest.LogCaptureFixture) -> None:
    log = LogArgs(prompts=True)
    http = TestClient(create_app(Caller(), routing=RoutingArgs(), limits=LIMITS, access=Access(), log=log))
    with caplog.at_level(logging.INFO, logger="ray.serve.dlp.request"):
        http.post("/v1/chat/completions", json=chat(messages=TURNS, tools=TOOLS))
    [record] = caplog.records
    assert record.__dict__["prompt"][1]["tool_calls"] == [CALL]
    assert record.__dict__["completions"] == ['weather({"city": "Paris"})\nnow({})']
    assert record.__dict__["finish_reasons"] == ["tool_calls"]
