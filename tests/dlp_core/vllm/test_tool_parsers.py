"""vLLM's tool parsers behind the reader of an answer: a stream adds up to what the whole text says, wherever it is cut.

The last tests name what dlp_core/vllm/seam/tool_parsers.py touches; a version of vLLM that changes it fails there.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from vllm.parser import DelegatingParser, ParserManager
from vllm.tool_parsers.streaming import extract_required_tool_call_streaming
from vllm.tool_parsers.utils import get_json_schema_from_tools

from dlp_core.engine.grammar import Grammars
from dlp_core.errors import DLPError, InvalidRequest
from dlp_core.generation.messages import Completion, Delta
from dlp_core.text.tools import Tools
from dlp_core.vllm.seam.tool_parsers import ToolParsers
from examples.tiny.model import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # those of vLLM are its own

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now", "strict": True}}
TOOLS = Tools((WEATHER, NOW))
PROMPT = [5, 6, 7]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """With the tokens by which several models mark calls."""
    made = tiny_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|python_tag|>", "[TOOL_CALLS]"]})
    return made


@cache
def parsers(name: str) -> ToolParsers:
    return ToolParsers(name, tokenizer())


def read(name: str, pieces: Sequence[str], tools: Tools = TOOLS, *, stream: bool = True) -> Completion:
    reader = parsers(name).reader(tools, PROMPT, stream=stream)
    completion = Completion()
    for found in (*(reader.push(piece, ()) for piece in pieces), reader.finish()):
        completion.add(Delta(found.text, (), found.calls))
    return completion


def calls(completion: Completion) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in completion.calls]


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
called = st.lists(
    st.tuples(st.sampled_from(["weather", "now"]), st.dictionaries(words, values, max_size=3)), max_size=3
)
cuts = st.lists(st.integers(0, 400), max_size=6)


def pieces_of(text: str, at: Sequence[int]) -> list[str]:
    bounds = [0, *sorted({cut % (len(text) + 1) for cut in at}), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


def hermes(text: str, made: Sequence[tuple[str, Any]]) -> str:
    written = (json.dumps({"name": name, "arguments": arguments}) for name, arguments in made)
    return text + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)


def llama(made: Sequence[tuple[str, Any]]) -> str:
    return "; ".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in made)


@settings(deadline=None, max_examples=60)
@given(words.filter(lambda text: "<" not in text), called, cuts)
def test_hermes_says_the_same_wherever_it_is_cut(text: str, made: list[tuple[str, Any]], at: list[int]) -> None:
    written = hermes(text, made)
    whole = read("hermes", [written], stream=False)
    assert calls(whole) == made
    for pieces in (pieces_of(written, at), list(written)):
        streamed = read("hermes", pieces)
        assert calls(streamed) == made
        assert streamed.text == text


@settings(deadline=None, max_examples=60)
@given(called, cuts)
def test_llama_says_the_same_wherever_it_is_cut(made: list[tuple[str, Any]], at: list[int]) -> None:
    written = llama(made)
    whole = read("llama3_json", [written], stream=False)
    assert (whole.text, calls(whole)) == ("", made)
    for pieces in (pieces_of(written, at), list(written)):
        streamed = read("llama3_json", pieces)
        assert (streamed.text, calls(streamed)) == ("", made)


@settings(deadline=None, max_examples=60)
@given(called.filter(bool), cuts)
def test_a_forced_answer_says_the_same_wherever_it_is_cut(made: list[tuple[str, Any]], at: list[int]) -> None:
    several = json.dumps([{"name": name, "parameters": arguments} for name, arguments in made])
    one = json.dumps(made[0][1])
    for pieces in (pieces_of, lambda text, _: list(text)):
        for stream in (True, False):
            forced = read("hermes", pieces(several, at), Tools(TOOLS.schemas, "required"), stream=stream)
            assert (forced.text, calls(forced)) == ("", made)
            named = read("hermes", pieces(one, at), Tools(TOOLS.schemas, "required", "now"), stream=stream)
            assert (named.text, calls(named)) == ("", [("now", made[0][1])])


def test_each_call_has_an_id_of_its_own_and_begins_once_in_order() -> None:
    text = hermes("Look: ", [("weather", {"city": "Paris"}), ("now", {}), ("weather", {})])
    for pieces in ([text], list(text)):
        reader = parsers("hermes").reader(TOOLS, PROMPT, stream=True)
        reads = [*(reader.push(piece, ()) for piece in pieces), reader.finish()]
        begun = [call for read in reads for call in read.calls if call.name is not None]
        assert [(call.index, call.name) for call in begun] == [(0, "weather"), (1, "now"), (2, "weather")]
        assert len({call.id for call in begun}) == 3
        assert all((call.id is None) == (call.name is None) for read in reads for call in read.calls)


def test_arguments_come_in_fragments() -> None:
    text = hermes("", [("weather", {"city": "Paris"})])
    reader = parsers("hermes").reader(TOOLS, PROMPT, stream=True)
    fragments = [call.arguments for character in text for call in reader.push(character, ()).calls]
    assert len([fragment for fragment in fragments if fragment]) > 10
    assert "".join(fragments) == '{"city": "Paris"}'


@pytest.mark.parametrize("stream", [True, False])
def test_one_call_is_all_where_calls_are_not_parallel(stream: bool) -> None:
    text = hermes("", [("now", {}), ("weather", {"city": "Paris"})])
    for pieces in ([text], list(text)):
        assert calls(read("hermes", pieces, Tools(TOOLS.schemas, parallel=False), stream=stream)) == [("now", {})]


@pytest.mark.parametrize("text", ["no call", "a <tool", "<tool_call", "1 < 2", ""])
@pytest.mark.parametrize("stream", [True, False])
def test_text_that_might_have_become_a_call_is_text(text: str, stream: bool) -> None:
    for pieces in ([text], list(text)):
        assert read("hermes", pieces, stream=stream) == Completion(text)


def test_a_call_that_is_cut_off_stays_what_was_streamed_of_it() -> None:
    text = hermes("", [("weather", {"city": "Paris"})])[:-20]
    streamed = read("hermes", list(text))
    [call] = streamed.calls
    assert (streamed.text, call.name) == ("", "weather")
    assert '{"city": "Paris"}'.startswith(call.arguments)
    assert read("hermes", [text], stream=False) == Completion(text)


def test_calls_marked_by_special_tokens_are_found() -> None:
    """Mistral's parser looks for the token, and its text must be in the text."""
    reader = parsers("mistral").reader(TOOLS, PROMPT, stream=True)
    assert reader.special_tokens
    completion = Completion()
    marker = tokenizer().convert_tokens_to_ids("[TOOL_CALLS]")
    plain = tokenizer()(' [{"name": "weather", "arguments": {"city": "Paris"}}]', add_special_tokens=False).input_ids
    for token in (marker, *plain):
        found = reader.push(tokenizer().decode([token]), (token,))
        completion.add(Delta(found.text, (), found.calls))
    found = reader.finish()
    completion.add(Delta(found.text, (), found.calls))
    assert (completion.text, calls(completion)) == ("", [("weather", {"city": "Paris"})])


def test_an_unknown_parser_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"'hermez'.*hermes.*llama3_json"):
        ToolParsers("hermez", tokenizer())


def test_a_parser_whose_tokens_the_model_lacks_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"not this model's: .*<\|python_tag\|>"):
        ToolParsers("llama3_json", tiny_tokenizer())


def test_schemas_that_cannot_be_put_together_are_refused() -> None:
    def function(name: str, kind: str) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": kind}}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    tools = Tools((function("f", "string"), function("g", "integer")), "required")
    with pytest.raises(InvalidRequest, match="'a' has multiple schemas") as refused:
        parsers("hermes").reader(tools, PROMPT, stream=True)
    assert refused.value.param == "tools"
    one = Tools((function("f", "string"),), "required")
    for _ in range(2):  # what is asked twice was not changed by the first time
        schema = json.loads(parsers("hermes").reader(one, PROMPT, stream=True).schema or "")
        assert schema["$defs"] == {"a": {"type": "string"}}


@pytest.mark.parametrize(
    ("tools", "document", "others"),
    [
        (
            Tools(TOOLS.schemas, "required"),
            '[{"name": "weather", "parameters": {"city": "x"}}, {"name": "now", "parameters": {}}]',
            ["[]", '[{"name": "other"', '[{"name": "weather", "parameters": {}}', '[{"name": "now", "parameters": 1'],
        ),
        (
            Tools(TOOLS.schemas, "required", parallel=False),
            '[{"name": "now", "parameters": {}}]',
            ['[{"name": "now", "parameters": {}},', '[{"name": "now", "parameters": {}, "more"'],
        ),
        (Tools(TOOLS.schemas, "required", "weather"), '{"city": "x"}', ["{}", "[", '"']),
    ],
)
def test_an_answer_that_must_call_is_held_to_calls(tools: Tools, document: str, others: Sequence[str]) -> None:
    schema = parsers("hermes").reader(tools, PROMPT, stream=True).schema
    assert schema is not None
    grammars = Grammars(tokenizer(), len(tokenizer()), frozenset([2]))
    assert follows(grammars, schema, document)
    assert not any(follows(grammars, schema, other) for other in others)


def follows(grammars: Grammars, schema: str, text: str) -> bool:
    guide = grammars.guide(schema)
    for token in tokenizer()(text, add_special_tokens=False).input_ids:
        if guide.mask(torch.zeros(len(tokenizer())))[token] != 0:
            return False
        guide.accept(token)
    return True


@pytest.mark.parametrize("stream", [True, False])
def test_a_parser_that_fails_ends_the_answer_and_names_itself(stream: bool) -> None:
    class Failing(parsers("hermes")._parser):  # type: ignore[misc]
        def parse_delta(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("no such token")

        def parse(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("no such token")

    failing = ToolParsers("hermes", tokenizer())
    failing._parser = Failing
    reader = failing.reader(TOOLS, PROMPT, stream=stream)
    fails = partial(reader.push, "a", ()) if stream else reader.finish
    with pytest.raises(DLPError, match="tool parser hermes failed on the model's answer: no such token"):
        fails()


# ------------------------------------------------------------------- what dlp_core/vllm/seam/tool_parsers.py touches


def test_a_parser_is_made_and_asked_as_vllms_server_does_it() -> None:
    made = list(inspect.signature(ParserManager.get_parser).parameters)
    assert made[:3] == ["tool_parser_name", "reasoning_parser_name", "enable_auto_tools"]
    assert "tokenizer" in made
    assert list(inspect.signature(DelegatingParser.parse_delta).parameters) == [
        "self",
        "delta_text",
        "delta_token_ids",
        "request",
        "prompt_token_ids",
        "finished",
    ]
    assert list(inspect.signature(DelegatingParser.parse).parameters) == [
        "self",
        "model_output",
        "request",
        "enable_auto_tools",
        "model_output_token_ids",
    ]
    for name in ("adjust_request", "set_prompt_token_ids"):
        assert callable(getattr(DelegatingParser, name))


def test_required_calls_are_a_list_of_names_and_parameters() -> None:
    assert list(inspect.signature(extract_required_tool_call_streaming).parameters) == [
        "previous_text",
        "current_text",
        "tool_call_idx",
        "tool_call_id_type",
    ]
    assert list(inspect.signature(get_json_schema_from_tools).parameters) == [
        "tool_choice",
        "tools",
        "parallel_tool_calls",
    ]
    schema = json.loads(parsers("hermes").reader(Tools((NOW,), "required"), PROMPT, stream=True).schema or "")
    assert schema == {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "anyOf": [
                {
                    "properties": {
                        "name": {"type": "string", "enum": ["now"]},
                        "parameters": {"type": "object", "properties": {}},
                    },
                    "required": ["name", "parameters"],
                    "additionalProperties": False,
                }
            ],
        },
    }
