"""Chat templates as models have them: nobody's words are dropped."""

from __future__ import annotations

import pytest

from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.text.chat import Message
from dlp_core.text.codec import TextCodec
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
