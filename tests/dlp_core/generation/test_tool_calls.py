"""Calls of tools on their way through the generator. What vLLM's parsers find is tests/dlp_core/vllm's business."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.engine.request import FinishReason, Sampling, TokenEvent, TokenLogprob
from dlp_core.errors import InvalidRequest
from dlp_core.generation.generator import Generator
from dlp_core.generation.messages import Completion
from dlp_core.mix import EMPTY_MIX
from dlp_core.text.chat import Message
from dlp_core.text.codec import TextCodec
from dlp_core.text.tools import CallDelta, CallReader, Read, ToolCall, Tools
from examples.tiny.model import CHAT_TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TOKENIZER.chat_template = "{{ tools | tojson }}" + CHAT_TEMPLATE
CODEC = TextCodec(TOKENIZER, context=4096)
CONVERSATION = (Message("user", "the user"),)
SCHEMA = {"type": "function", "function": {"name": "f"}}
TOOLS = Tools((SCHEMA,))
TEXT = "so <a é><b> end"


class Engine:
    """Says the same each time."""

    vocabulary, context = 320, 4096

    def __init__(self, text: str = TEXT, *, together: int = 1, reason: FinishReason = "stop") -> None:
        self._ids = TOKENIZER(text).input_ids
        self._together = together
        self._reason: FinishReason = reason
        self.asked: list[Sampling] = []
        self.fail: Exception | None = None

    async def submit(
        self, prompt_ids: Sequence[int], mix: Any, sampling: Sampling, **options: Any
    ) -> AsyncGenerator[TokenEvent, None]:
        self.asked.append(sampling)
        if self.fail is not None:
            raise self.fail
        batches = [self._ids[start : start + self._together] for start in range(0, len(self._ids), self._together)]
        for number, ids in enumerate(batches, start=1):
            logprobs = tuple(TokenLogprob(token, -1.0, ()) for token in ids)
            yield TokenEvent(tuple(ids), logprobs, finish_reason=self._reason if number == len(batches) else None)


class Angles:
    """A call is `<name arguments>`: its name is told once it is known, its arguments at the end."""

    def __init__(self, tools: Tools, *, special_tokens: bool) -> None:
        self.special_tokens = special_tokens
        self.schema = '{"const": 1}' if tools.choice == "required" else None
        self.pieces: list[tuple[str, tuple[int, ...]]] = []
        self._calls = 0
        self._inside = ""

    def push(self, text: str, token_ids: Sequence[int]) -> Read:
        self.pieces.append((text, tuple(token_ids)))
        plain, calls = "", []
        for character in text:
            if self._inside and character == ">":
                name, _, arguments = self._inside[1:].partition(" ")
                calls.append(CallDelta(self._calls, arguments, f"id{self._calls}", name))
                self._calls, self._inside = self._calls + 1, ""
            elif self._inside or character == "<":
                self._inside += character
            else:
                plain += character
        return Read(plain, tuple(calls))

    def finish(self) -> Read:
        return Read(self._inside)


class Readers:
    def __init__(self, *, special_tokens: bool = True) -> None:
        self._special_tokens = special_tokens
        self.made: list[Angles] = []
        self.asked: list[tuple[Any, ...]] = []

    def reader(self, tools: Tools, prompt_ids: Sequence[int], *, stream: bool) -> CallReader:
        self.asked.append((tools, list(prompt_ids), stream))
        self.made.append(Angles(tools, special_tokens=self._special_tokens))
        return self.made[-1]


async def said(
    engine: Engine, readers: Readers | None, tools: Tools | None = TOOLS, *, logprobs: int | None = None, **options: Any
) -> Completion:
    completion = Completion()
    generator = Generator(engine, CODEC, calls=readers)  # type: ignore[arg-type]
    async for piece in generator.generate(
        CONVERSATION, EMPTY_MIX, Sampling(logprobs=logprobs), request_id="1", tools=tools, **options
    ):
        completion.add(piece)
    return completion


async def test_calls_are_told_beside_the_text() -> None:
    readers = Readers()
    completion = await said(Engine(), readers, logprobs=0, stream=False)
    assert completion.text == "so  end"
    assert completion.calls == [ToolCall("id0", "a", "é"), ToolCall("id1", "b", "")]
    assert completion.finished is not None
    assert completion.finished.finish_reason == "tool_calls"
    ids = TOKENIZER(TEXT).input_ids
    assert completion.finished.completion_tokens == len(ids)
    assert b"".join(logprob.token.bytes for logprob in completion.logprobs) == TEXT.encode()
    prompt = CODEC.encode_chat(CONVERSATION, tools=[SCHEMA])
    assert readers.asked == [(TOOLS, prompt.ids, False)]


@given(st.integers(1, 9))
async def test_a_reader_gets_token_by_token_however_they_come(together: int) -> None:
    readers = Readers()
    completion = await said(Engine(together=together), readers)
    assert completion.calls == [ToolCall("id0", "a", "é"), ToolCall("id1", "b", "")]
    *pieces, (rest, none) = readers.made[0].pieces
    assert [token for _, tokens in pieces for token in tokens] == TOKENIZER(TEXT).input_ids
    assert all(len(tokens) == 1 for _, tokens in pieces)
    assert ("".join(text for text, _ in pieces) + rest, none) == (TEXT, ())


async def test_special_tokens_are_text_if_the_reader_wants_them() -> None:
    text = "a<|im_start|>b"
    for wanted, expected in ((True, "im_start"), (False, "ab")):
        readers = Readers(special_tokens=wanted)
        await said(Engine(text), readers)
        assert expected in "".join(piece for piece, _ in readers.made[0].pieces)


async def test_a_stop_string_ends_it_before_the_next_call() -> None:
    readers = Readers()
    completion = await said(Engine(together=9), readers, stop=("><",))
    assert (completion.text, completion.calls) == ("so <a é", [])
    assert completion.finished is not None
    assert completion.finished.finish_reason == "stop"


@pytest.mark.parametrize(
    ("tools", "reason", "told"),
    [
        (TOOLS, "stop", "tool_calls"),
        (TOOLS, "length", "length"),
        (Tools((SCHEMA,), "required"), "stop", "tool_calls"),
        (Tools((SCHEMA,), "required", "f"), "stop", "stop"),
    ],
)
async def test_the_end_has_the_reason_that_openais_api_has(tools: Tools, reason: FinishReason, told: str) -> None:
    completion = await said(Engine(reason=reason), Readers(), tools)
    assert completion.finished is not None
    assert completion.finished.finish_reason == told
    plain = await said(Engine("no call", reason=reason), Readers(), tools)
    assert plain.finished is not None
    assert plain.finished.finish_reason == reason


async def test_an_answer_that_must_call_follows_the_readers_schema() -> None:
    engine = Engine()
    await said(engine, Readers(), Tools((SCHEMA,), "required"))
    await said(engine, Readers())
    assert [sampling.response_format for sampling in engine.asked] == ['{"const": 1}', None]


async def test_errors_of_a_schema_made_of_tools_are_errors_of_the_tools() -> None:
    engine = Engine()
    engine.fail = InvalidRequest("response_format: the schema is too large", param="response_format")
    with pytest.raises(InvalidRequest, match=r"tool_choice .* too large") as refused:
        await said(engine, Readers(), Tools((SCHEMA,), "required"))
    assert refused.value.param == "tools"
    with pytest.raises(InvalidRequest) as own:
        await said(engine, Readers())
    assert own.value is engine.fail


async def test_without_readers_tools_are_refused_before_the_engine_is_asked() -> None:
    engine = Engine()
    with pytest.raises(InvalidRequest, match=r"engine\.vllm\.tool_parser") as refused:
        await said(engine, None)
    assert (refused.value.param, engine.asked) == ("tools", [])
    completion = await said(engine, None, Tools((SCHEMA,), "none"))
    assert (completion.text, completion.calls) == (TEXT, [])


async def test_tools_that_are_not_to_be_called_are_in_the_prompt_and_nobody_reads_the_answer() -> None:
    readers, engine = Readers(), Engine()
    completion = await said(engine, readers, Tools((SCHEMA,), "none"))
    assert (completion.text, readers.asked) == (TEXT, [])
    assert completion.finished is not None
    assert completion.finished.prompt_tokens == len(CODEC.encode_chat(CONVERSATION, tools=[SCHEMA]).ids)
