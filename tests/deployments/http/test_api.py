"""The HTTP surface, without Ray and without a model: what is accepted, what is refused and how, what is answered.

The service behind it routes by the words of a text and answers with that text, word by word. That the real one
behaves alike is tests/cluster/test_application.py's business.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from deployments.args import LimitArgs, RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from deployments.http.requests import ChatRequest, CompletionRequest
from dlp_core.decision import Decision, RoutingOptions, decide
from dlp_core.engine.request import Sampling
from dlp_core.errors import AdapterUnavailable, EngineFailed, EngineFull, PromptTooLong, StoreUnavailable
from dlp_core.generation.messages import Delta, Finished, GenerationRequest, Logprob, TokenText
from dlp_core.mix import EMPTY_MIX, Mix, Span, WeightRule, select_top_p
from dlp_core.router.explanation import Explanation, WordEffect
from tests.support.waiting import HANG_S

BASE = "org/tiny"
LIMITS = LimitArgs(max_body_bytes=20_000, request_timeout_s=60)


@dataclass
class WordRouting:
    probabilities: dict[str, float]

    @property
    def confidence(self) -> float:
        return max(self.probabilities.values(), default=0.0)

    @property
    def none(self) -> float:
        return 1.0 - sum(self.probabilities.values())

    @property
    def margin(self) -> float:
        return 1.0 - 2.0 * self.none

    top_p = 0.9

    def mix(self, *, top_p: float | None, **options: Any) -> Mix:
        chosen = select_top_p(self.probabilities, top_p=top_p or self.top_p, **options)
        return chosen if self.margin > 0 else EMPTY_MIX


def manifest(**changes: Any) -> Any:
    adapters = [
        SimpleNamespace(name=name, digest=f"sha256:{name}", description=about)
        for name, about in (("sql", "Writes queries."), ("cron", None), ("dates", None))
    ]
    bank: dict[str, Any] = {
        "version": "b1",
        "base_model": SimpleNamespace(id=BASE),
        "adapters": adapters,
        "router": SimpleNamespace(version="r1", labels=("cron", "dates", "sql")),
        "model_dump": lambda mode, exclude: {"version": "b1"},
    }
    return SimpleNamespace(**bank | changes)


@dataclass
class EchoService:
    manifest: Any = field(default_factory=manifest)
    asked: list[GenerationRequest] = field(default_factory=list)
    wishes: list[RoutingOptions] = field(default_factory=list)
    fail: Exception | None = None
    fail_after: int = 0  # pieces
    fail_number: int | None = None
    """The generation that fails; every one does where this is None."""
    stall_after: int | None = None
    """Pieces after which it says nothing more."""
    clock_leaps: bool = False
    """Whether the event loop's clock passes every deadline when it stalls."""
    closed: int = 0

    async def ready(self) -> None:
        pass

    def bank(self) -> Any:
        if self.manifest is None:
            raise StoreUnavailable("bank s3://b/ is not ready: connection refused", retry_after=5)
        return self.manifest

    async def decide(self, options: RoutingOptions, texts: Sequence[str]) -> Decision:
        async def route(texts: Sequence[str]) -> Any:
            words = [word for word in texts[0].split() if word in ("sql", "cron", "dates") and options.may_use(word)]
            return WordRouting({name: words.count(name) / len(words) for name in dict.fromkeys(words)} if words else {})

        self.wishes.append(options)
        return await decide(self.bank(), options, texts, route)

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        return Explanation(texts[0], "sql", tuple(WordEffect(word, 1.5) for word in texts[0].split()))

    def refused(self) -> None:
        return None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Finished, None]:
        number = len(self.asked)
        self.asked.append(request)
        text = request.source if isinstance(request.source, str) else request.source[-1].content
        try:
            words = text.split(" ")
            for index, word in enumerate(words):
                await asyncio.sleep(0)
                if self.fail is not None and index == self.fail_after and self.fail_number in (None, number):
                    raise self.fail
                if index == self.stall_after:
                    await self._stall()
                token = TokenText(f"{word} ", f"{word} ".encode(), -0.5)
                asked = request.sampling.logprobs
                logprob = Logprob(token, (token,)[:asked], sum(len(word) + 1 for word in words[:index]))
                yield Delta(f"{word} ", () if asked is None else (logprob,))
            yield Finished("stop", 7, len(words), (Span(0, 7 + len(words), request.mix),))
        finally:
            self.closed += 1

    async def _stall(self) -> None:
        if self.clock_leaps:
            loop = asyncio.get_running_loop()
            clock = loop.time
            loop.time = lambda: clock() + LIMITS.request_timeout_s  # type: ignore[method-assign]
        await asyncio.Event().wait()


@pytest.fixture
def service() -> EchoService:
    return EchoService()


@pytest.fixture
def http(service: EchoService) -> Iterator[TestClient]:
    api = create_app(service, routing=RoutingArgs(max_adapters=3), limits=LIMITS, access=Access())
    with TestClient(api, raise_server_exceptions=False, base_url="http://server/v1") as client:
        yield client


@pytest.fixture
def client(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://server/v1", api_key="unused", http_client=http, max_retries=0)


def chat(text: str = "make sql", **changes: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}]} | changes


def refused(answer: Any, status: int, param: str | None, code: str) -> str:
    """Checks the shape of an error and returns its message."""
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return str(error["message"])


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
                    {"adapter": "sql", "weight": pytest.approx(0.8), "digest": "sha256:sql"},
                    {"adapter": "cron", "weight": pytest.approx(0.2), "digest": "sha256:cron"},
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
        ({"max_adapters": 2}, "sql=0.60,cron=0.40"),
        ({"top_p": 0.4}, "sql=1.00"),
        ({"top_p": 0.4, "min_confidence": 0.5}, "sql=1.00"),
        ({"weights": "softmax"}, "sql=0.39,cron=0.33,dates=0.28"),
        ({"weights": "softmax", "max_adapters": 2}, "sql=0.54,cron=0.46"),
        ({"weights": "renormalise", "max_adapters": 2}, "sql=0.60,cron=0.40"),
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


def test_the_server_says_how_adapters_are_weighted_unless_the_request_does(service: EchoService) -> None:
    api = create_app(service, routing=RoutingArgs(weights="softmax"), limits=LIMITS, access=Access())
    text, probabilities = "sql sql sql cron cron dates", {"sql": 3 / 6, "cron": 2 / 6, "dates": 1 / 6}
    with TestClient(api, base_url="http://server/v1") as http:
        cases: list[tuple[str | None, WeightRule]] = [(None, "softmax"), ("renormalise", "renormalise")]
        for asked, rule in cases:
            reply = http.post("/route", json={"text": text, "dlp": {"weights": asked}}).json()
            assert reply["weights"] == rule
            mix = Mix.of({part["adapter"]: part["weight"] for part in reply["mix"]})
            assert mix == select_top_p(probabilities, weights=rule)


def test_the_router_reads_the_last_user_turn(http: TestClient) -> None:
    turns = [{"role": "user", "content": "sql"}, {"role": "assistant", "content": "dates"}]
    body = chat(messages=[*turns, {"role": "user", "content": "cron"}])
    assert http.post("/chat/completions", json=body).headers["x-dlp-adapters"] == "cron=1.00"


# --- what a request may say


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
    rare = {"min_tokens": 2, "repetition_penalty": 1.1, "seed": 7, "ignore_eos": True}
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
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {}}, "prediction"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
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
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages.0.tool_calls"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ],
)
def test_an_unknown_field_is_refused_by_name(http: TestClient, changes: dict[str, Any], param: str) -> None:
    code = "unsupported_parameter" if "tool" in param else "unknown_parameter"
    refused(http.post("/chat/completions", json=chat(**changes)), 400, param, code)


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


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/sql", "/v1/bank"])
def test_a_head_is_answered(http: TestClient, path: str) -> None:
    answer = http.head(f"http://server{path}")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_slash_at_the_end_changes_nothing(http: TestClient) -> None:
    assert http.get("/models/", follow_redirects=False).json() == http.get("/models").json()
    assert http.post("/chat/completions/", json=chat(), follow_redirects=False).status_code == 200
    assert http.get("http://server/", follow_redirects=False).status_code == 404


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
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
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


@pytest.mark.parametrize("prompt", ["", [], ["a", "b"], [1, 2], [[1, 2]], 5])
def test_a_bad_prompt_is_refused(http: TestClient, prompt: object) -> None:
    refused(http.post("/completions", json={"model": "auto", "prompt": prompt}), 400, "prompt", "invalid_value")


def test_one_prompt_in_a_list_is_a_prompt(http: TestClient) -> None:
    assert http.post("/completions", json={"model": "auto", "prompt": ["a b"]}).json()["choices"][0]["text"] == "a b "


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
