"""Chat templates as models have them: nobody's words are dropped, nor tools, calls and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dlp_core.errors import AdapterRefused, InvalidRequest, PromptTooLong
from dlp_core.text.chat import Message
from dlp_core.text.codec import TextCodec
from dlp_core.text.tools import ToolCall
from examples.tiny.model import CHAT_TEMPLATE, tiny_tokenizer

TURNS = [Message("system", "Be brief."), Message("user", "hello there")]

STRINGS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
STRICT_PARTS = "{% for m in messages %}{{ m.role }}: {{ m.content[0]['text'] }}\n{% endfor %}"
BOTH = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}[part]{{ p.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + STRINGS
IGNORES_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
)


def rendered(template: str, turns: list[Message] = TURNS) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return TextCodec(tokenizer, context=4096).encode_chat(turns).text


@pytest.mark.parametrize("template", [STRINGS, PARTS])
def test_content_is_given_as_the_template_reads_it(template: str) -> None:
    assert rendered(template) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello there<|im_end|>\n"


def test_a_template_that_fails_on_strings_gets_parts() -> None:
    assert rendered(STRICT_PARTS) == "system: Be brief.\nuser: hello there\n"


def test_a_template_that_reads_both_gets_strings() -> None:
    assert "[part]" not in rendered(BOTH)


@pytest.mark.parametrize("template", [NO_SYSTEM, IGNORES_SYSTEM], ids=["raises", "ignores"])
def test_system_turns_go_before_the_next_user_turn_where_there_is_no_system_role(template: str) -> None:
    assert "Be brief.\n\nhello there" in rendered(template)
    later = [Message("user", "one"), Message("assistant", "two"), Message("system", "three"), Message("user", "four")]
    assert "three\n\nfour" in rendered(template, later)
    assert "five" in rendered(template, [Message("user", "one"), Message("system", "five")])


def test_a_template_may_still_reject_turns() -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}" + STRINGS
    with pytest.raises(InvalidRequest, match="too many") as refused:
        rendered(template, [*TURNS, Message("assistant", "x")])
    assert refused.value.param == "messages"


def test_the_turns_are_found_in_the_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    prompt = TextCodec(tokenizer, context=64).encode_chat(TURNS)
    assert [prompt.text[start:end] for start, end in prompt.turns] == ["Be brief.", "hello there"]


def test_an_adapters_own_template_renders_its_prompts() -> None:
    codec = TextCodec(tiny_tokenizer(), context=64)
    own = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    prompt = codec.encode_chat(TURNS, chat_template=own)
    assert prompt.text == "[system] Be brief.\n[user] hello there\n"
    assert [prompt.text[start:end] for start, end in prompt.turns] == ["Be brief.", "hello there"]
    assert codec.encode_chat(TURNS, chat_template=f"{CHAT_TEMPLATE}\n") == codec.encode_chat(TURNS)
    with pytest.raises(InvalidRequest, match="no system role"):
        codec.encode_chat([Message("user", "")], chat_template="{{ raise_exception('no system role') }}")
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(AdapterRefused):
        codec.encode_chat(TURNS, chat_template=endless)


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "w", "parameters": {"type": "object"}}}]
CALLED = [
    Message("user", "hello there"),
    Message("assistant", "", (ToolCall("call12345", "weather", '{"city": "Paris", "days": 2}'),)),
    Message("tool", "21 degrees", tool_call_id="call12345", name="weather"),
]
OFFERED = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
TURN = "{{ m.role }}: {{ m.content }}{% if m.tool_call_id %} for {{ m.tool_call_id }} of {{ m.name }}{% endif %}\n"
OBJECTS = (
    OFFERED
    + "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }} {{ c.function.name }}("
    + "{% for key, value in c.function.arguments.items() %}{{ key }}={{ value | tojson }};{% endfor %})\n{% endfor %}"
    + TURN
    + "{% endfor %}"
)
WRITTEN = (
    OFFERED
    + "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    + "{{ c.id + ' ' + c.function.name + c.function.arguments }}\n{% endfor %}"
    + TURN
    + "{% endfor %}"
)
WITHOUT_CALLS = OFFERED + "{% for m in messages %}" + TURN + "{% endfor %}"
WITHOUT_RESULTS = OBJECTS.replace(TURN, "{% if m.role != 'tool' %}" + TURN + "{% endif %}")


Rendered = Callable[..., str]


def with_tools(template: str, turns: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return TextCodec(tokenizer, context=4096).encode_chat(turns, tools=tools).text


@pytest.fixture(scope="module")
def of_an_adapter() -> Iterator[Rendered]:
    codec = TextCodec(tiny_tokenizer(), context=4096)
    yield lambda template, turns, tools=None: codec.encode_chat(turns, tools=tools, chat_template=template).text
    codec._foreign.close()


@pytest.fixture(params=["the model's", "an adapter's"])
def render(request: pytest.FixtureRequest) -> Rendered:
    """Renders by a template, which is the model's or an adapter's."""
    return with_tools if request.param == "the model's" else request.getfixturevalue("of_an_adapter")


def test_tools_calls_and_results_are_what_transformers_gives_a_template(render: Rendered) -> None:
    turns = [
        {"role": "user", "content": "hello there"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call12345",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Paris", "days": 2}},
                }
            ],
        },
        {"role": "tool", "content": "21 degrees", "tool_call_id": "call12345", "name": "weather"},
    ]
    expected = tiny_tokenizer().apply_chat_template(
        turns, tools=TOOLS, chat_template=OBJECTS, add_generation_prompt=True, tokenize=False
    )
    assert 'city="Paris";days=2;' in expected
    assert render(OBJECTS, CALLED, TOOLS) == expected


def test_a_template_that_joins_arguments_to_its_text_gets_them_as_they_were_written(render: Rendered) -> None:
    assert 'call12345 weather{"city": "Paris", "days": 2}\n' in render(WRITTEN, CALLED, TOOLS)


def test_a_template_that_would_write_an_object_as_python_does_gets_a_string(render: Rendered) -> None:
    template = WRITTEN.replace("c.id + ' ' + c.function.name + c.function.arguments", "c.function.arguments")
    assert 'hello there{"city": "Paris", "days": 2}' in render(template, CALLED, TOOLS)


def test_arguments_that_are_no_json_stay_what_the_model_wrote() -> None:
    broken = [CALLED[0], Message("assistant", "", (ToolCall("call12345", "weather", '{"city": "Par'),))]
    assert 'weather{"city": "Par\n' in with_tools(WRITTEN, broken)
    nothing = [CALLED[0], Message("assistant", "", (ToolCall("call12345", "weather", ""),))]
    assert "weather()\n" in with_tools(OBJECTS, nothing)
    with pytest.raises(InvalidRequest, match="rejects these messages"):
        with_tools(OBJECTS, broken)


@pytest.mark.parametrize(
    ("template", "turns", "tools", "what"),
    [
        (STRINGS, TURNS, TOOLS, "tools"),
        (WITHOUT_CALLS, CALLED, None, "the calls"),
        (WITHOUT_RESULTS, CALLED, TOOLS, "the results"),
    ],
)
def test_what_a_template_leaves_out_is_refused(
    render: Rendered, template: str, turns: list[Message], tools: list[dict[str, Any]] | None, what: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"leaves out {what}") as refused:
        render(template, turns, tools)
    assert refused.value.param == ("tools" if what == "tools" else "messages")


def test_a_template_that_cannot_do_without_tools_has_them(render: Rendered) -> None:
    needs = OBJECTS.replace("{% if tools %}", "").replace("{% endfor %}{% endif %}", "{% endfor %}", 1)
    assert "weather" in render(needs, TURNS, TOOLS)


def test_a_template_that_rejects_calls_says_why(render: Rendered) -> None:
    rejects = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + OBJECTS
    with pytest.raises(InvalidRequest, match="one turn only"):
        render(rejects, CALLED, TOOLS)


def test_tools_that_a_template_shows_in_some_conversations_only_are_refused_in_the_others() -> None:
    template = "{% if messages[0].role == 'system' %}" + OFFERED + "{% endif %}" + STRINGS
    assert "weather" in with_tools(template, TURNS, TOOLS)
    with pytest.raises(InvalidRequest, match="leaves out tools"):
        with_tools(template, TURNS[1:], TOOLS)


def test_turns_are_not_looked_for_in_the_tools_before_them() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = OBJECTS
    turns = [Message("user", "weather"), Message("user", "w"), Message("user", "weather")]
    prompt = TextCodec(tokenizer, context=4096).encode_chat(turns, tools=TOOLS)
    starts = [start for start, _ in prompt.turns]
    assert [prompt.text[start:end] for start, end in prompt.turns] == ["weather", "w", "weather"]
    assert starts == sorted(starts)
    assert starts[0] > prompt.text.index("user: ")


def test_tools_count_where_a_prompt_is_too_long() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = OBJECTS
    codec = TextCodec(tokenizer, context=64)
    described = [{"type": "function", "function": {"name": "f", "description": "é" * 9999}}]
    with pytest.raises(PromptTooLong) as refused:
        codec.encode_chat(TURNS, tools=described)
    assert refused.value.param == "tools"
    arguments = Message("assistant", "", (ToolCall("call12345", "f", '{"a": "' + "é" * 9999 + '"}'),))
    with pytest.raises(PromptTooLong) as refused:
        codec.encode_chat([TURNS[1], arguments])
    assert refused.value.param == "messages"
