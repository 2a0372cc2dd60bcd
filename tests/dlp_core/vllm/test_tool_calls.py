"""Calls of tools from end to end: the template, the grammar inside vLLM, the parser, under a mix of adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dlp_core.engine.config import VllmConfig
from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import InvalidRequest
from dlp_core.generation.generator import Generator
from dlp_core.generation.messages import Completion
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.sources import FolderSource
from dlp_core.text.chat import Message
from dlp_core.text.codec import TextCodec
from dlp_core.text.tools import Tools
from examples.tiny.model import CHAT_TEMPLATE, tiny_tokenizer
from tests.support.engines import assert_nothing_leaked
from tests.support.vllm_engine import CONFIG

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine
from dlp_core.vllm.loading import load
from dlp_core.vllm.seam.tool_parsers import ToolParsers

pytestmark = [
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]

CITIES = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = tuple({"type": "function", "function": {"name": name, "parameters": CITIES}} for name in ("weather", "time"))
CONVERSATION = (Message("user", "the user speaks"),)


def generator(engine: VllmEngine) -> Generator:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}" + CHAT_TEMPLATE
    codec = TextCodec(tokenizer, context=engine.context)
    return Generator(engine, codec, calls=ToolParsers("hermes", tokenizer))


async def said(engine: VllmEngine, plan: Mix | Plan, tools: Tools, sampling: Sampling) -> Completion:
    completion = Completion()
    async for piece in generator(engine).generate(CONVERSATION, plan, sampling, request_id="1", tools=tools):
        completion.add(piece)
    assert_nothing_leaked(engine)
    return completion


@pytest.mark.parametrize("mix", [EMPTY_MIX, Mix.of({"a": 0.7, "b": 0.5})], ids=["plain", "mixed"])
async def test_an_answer_that_must_call_does(engine: VllmEngine, mix: Mix) -> None:
    sampling = Sampling(max_tokens=400, temperature=1.0, seed=3, logprobs=1)
    several = await said(engine, mix, Tools(TOOLS, "required", parallel=False), sampling)
    [call] = several.calls
    assert (several.text, call.name in {"weather", "time"}) == ("", True)
    assert json.loads(call.arguments)["city"] in {"Paris", "Rome"}
    assert several.finished is not None
    assert several.finished.finish_reason == "tool_calls"
    assert len(several.logprobs) == several.finished.completion_tokens
    assert {span.mix for span in several.finished.spans} == {mix}
    named = await said(engine, mix, Tools(TOOLS, "required", "time"), sampling)
    [call] = named.calls
    assert call.name == "time"
    assert set(json.loads(call.arguments)) == {"city"}


async def test_an_answer_that_may_call_may_also_talk(engine: VllmEngine) -> None:
    free = await said(engine, EMPTY_MIX, Tools(TOOLS), Sampling(max_tokens=8, ignore_eos=True))
    assert (len(free.text) > 0, free.calls) == (True, [])
    assert free.finished is not None
    assert free.finished.finish_reason == "length"


async def test_what_vllm_cannot_hold_to_a_schema_is_refused_as_tools(engine: VllmEngine) -> None:
    by_sentence = Plan(((0, EMPTY_MIX),), lambda token: None)
    with pytest.raises(InvalidRequest, match=r"tool_choice .* mix for each sentence") as refused:
        await said(engine, by_sentence, Tools(TOOLS, "required"), Sampling(max_tokens=8))
    assert refused.value.param == "tools"
    wrong = ({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": 5}}},)
    with pytest.raises(InvalidRequest, match="tool_choice") as refused:
        await said(engine, EMPTY_MIX, Tools(wrong, "required"), Sampling(max_tokens=8))
    assert refused.value.param == "tools"


async def test_the_parser_is_named_in_the_engines_settings(folder: Path) -> None:
    source = FolderSource({})
    for parser, found in (("hermes", True), (None, False)):
        loaded = load(folder / "base", source, replace(CONFIG, vllm=VllmConfig(tool_parser=parser)), dtype="float32")
        assert (loaded.calls is not None) is found
    with pytest.raises(InvalidRequest, match="'hermez'"):
        load(folder / "base", source, replace(CONFIG, vllm=VllmConfig(tool_parser="hermez")), dtype="float32")
