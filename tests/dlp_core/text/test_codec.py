"""Text and tokens: nothing is lost, split or leaked, however the tokens arrive."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from dlp_core.errors import InvalidRequest, PromptTooLong
from dlp_core.text.chat import Message
from dlp_core.text.codec import StopStrings, TextCodec
from examples.tiny.model import CHAT_TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CODEC = TextCodec(TOKENIZER, context=64)


def test_a_chat_is_encoded_by_the_models_template() -> None:
    turns = [Message("system", "Be brief."), Message("user", "  Hi ")]
    prompt = CODEC.encode_chat(turns)
    assert (
        prompt.text
        == TOKENIZER.decode(prompt.ids)
        == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Hi <|im_end|>\n<|im_start|>assistant\n")
    )
    assert [prompt.text[start:end] for start, end in prompt.turns] == ["Be brief.", "Hi"]
    same = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert prompt.ids == TOKENIZER.apply_chat_template(same, add_generation_prompt=True, return_dict=False)


def test_a_prompt_knows_where_its_tokens_are() -> None:
    prompt = CODEC.encode("the user. 日本")
    assert prompt.turns == ((0, 12),)
    for offset, character in enumerate(prompt.text):
        assert character in TOKENIZER.decode(prompt.ids[: prompt.token_at(offset) + 1]) or ord(character) > 127
    assert prompt.token_at(len(prompt.text)) == len(prompt.ids)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_token_bytes_are_the_text(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert b"".join(CODEC.token_text(token)[1] for token in ids) == text.encode()


@given(st.lists(st.sampled_from([0, 2, *TOKENIZER("日本 the é").input_ids]), max_size=20))
def test_special_tokens_are_text_where_they_are_asked_for(ids: list[int]) -> None:
    plain, special = CODEC.stream(CODEC.encode("x")), CODEC.stream(CODEC.encode("x"), special_tokens=True)
    texts = ["".join([*(stream.push([token]) for token in ids), stream.finish()]) for stream in (plain, special)]
    assert texts[0] == TOKENIZER.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    assert texts[1] == TOKENIZER.decode(ids, skip_special_tokens=False).rstrip("\ufffd")


@given(st.text("ab#", max_size=20), st.sampled_from([["#"], ["b#a"], ["ab", "ba#"], []]))
def test_released_tokens_are_those_whose_text_was_sent(text: str, stop: list[str]) -> None:
    stream = CODEC.stream(CODEC.encode("x"), stop)
    ids = TOKENIZER(text).input_ids
    sent = ""
    for token in ids:
        sent += stream.push([token])
        assert sent.startswith(TOKENIZER.decode(ids[: stream.released]))
    sent += stream.finish()
    assert sent.startswith(TOKENIZER.decode(ids[: stream.released]))
    assert stream.stopped or stream.released == len(ids)


def test_a_prompt_that_begins_with_the_first_special_token_gets_no_second() -> None:
    tokenizer = with_bos()
    codec, bos = TextCodec(tokenizer, context=64), tokenizer.bos_token_id
    bare = tokenizer("hi", add_special_tokens=False).input_ids
    for text in ("hi", f"{tokenizer.bos_token}hi"):
        prompt = codec.encode(text)
        assert prompt.ids == [bos, *bare]
        assert len(prompt.ends) == len(prompt.ids)
    assert codec.encode("hi", add_special_tokens=False).ids == bare
    chat = codec.encode_chat([Message("user", "hi")], add_special_tokens=True).ids
    assert chat[0] == bos
    assert chat[1:].count(bos) == codec.encode_chat([Message("user", "hi")]).ids[1:].count(bos)


def test_a_prompt_may_be_token_ids() -> None:
    ids = [TOKENIZER.bos_token_id or 0, *TOKENIZER("the user 日本 x").input_ids]
    prompt = CODEC.decode_prompt(ids)
    assert prompt.ids == ids
    assert prompt.text == "the user 日本 x"
    assert prompt.ends[-1] == len(prompt.text)
    assert not prompt.is_chat
    with pytest.raises(PromptTooLong):
        CODEC.decode_prompt([5] * 64)
    with pytest.raises(InvalidRequest, match="no tokens"):
        CODEC.decode_prompt([])


def with_bos() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, which puts a special token before every text, as most models' do."""
    tokenizer = tiny_tokenizer()
    bos = "<|im_start|>"
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    return tokenizer


def test_a_template_may_reject_the_turns() -> None:
    strict = tiny_tokenizer()
    strict.chat_template = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    with pytest.raises(InvalidRequest, match="user first") as refused:
        TextCodec(strict, context=64).encode_chat([Message("assistant", "Hi")])
    assert refused.value.param == "messages"


def test_a_prompt_of_too_many_tokens_is_refused() -> None:
    assert len(CODEC.encode("é" * 30).ids) < 64
    with pytest.raises(PromptTooLong, match="64") as refused:
        CODEC.encode("é" * 60)
    assert refused.value.param == "prompt"
    with pytest.raises(PromptTooLong) as refused:
        CODEC.encode_chat([Message("user", "é" * 60)])
    assert refused.value.param == "messages"


def test_an_oversized_prompt_is_refused_without_tokenising() -> None:
    class Untouched:
        def get_vocab(self) -> dict[str, int]:
            return {"abc": 0}

    codec = TextCodec(Untouched(), context=10)  # type: ignore[arg-type]
    with pytest.raises(PromptTooLong, match="31 characters"):
        codec.encode("x" * 31)
    with pytest.raises(TypeError, match="not callable"):
        codec.encode("x" * 30)


def test_room_for_the_completion() -> None:
    assert CODEC.room(60, None, default=512) == 4
    assert CODEC.room(10, None, default=20) == 20
    assert CODEC.room(60, 4, default=512) == 4
    with pytest.raises(PromptTooLong, match="at most 4") as refused:
        CODEC.room(60, 5, default=512)
    assert refused.value.param == "max_tokens"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example("👩‍👩‍👧 日本語 café")
def test_streamed_text_is_the_whole_text_and_never_half_a_character(text: str) -> None:
    stream = CODEC.stream(CODEC.encode("x"))
    pieces = [stream.push([token]) for token in TOKENIZER(text).input_ids]
    assert "".join([*pieces, stream.finish()]) == text or text.endswith("\ufffd")


def test_half_a_character_at_the_end_is_dropped() -> None:
    stream = CODEC.stream(CODEC.encode("x"))
    assert stream.push(TOKENIZER("a👩").input_ids[:-1]) + stream.finish() == "a"


def test_special_tokens_are_not_text() -> None:
    stream = CODEC.stream(CODEC.encode("x"))
    assert stream.push([*TOKENIZER("hi").input_ids, TOKENIZER.eos_token_id]) == "hi"


def test_tokens_after_a_stop_string_are_not_read() -> None:
    stream = CODEC.stream(CODEC.encode("x"), stop=["#"])
    ids = TOKENIZER("a#bc").input_ids
    assert stream.push(ids) == "a"
    assert stream.stopped
    assert stream.tokens == len(TOKENIZER("a#").input_ids) < len(ids)


@given(
    st.text("ab#", max_size=30),
    st.lists(st.text("ab#", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
def test_stop_strings_cut_the_text_however_it_arrives(text: str, stop: list[str], sizes: list[int]) -> None:
    ends = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
    expected = text[: min(ends)[1]] if ends else text
    finder, sent, rest = StopStrings(stop), "", text
    for size in sizes:
        sent += finder.push(rest[:size])
        rest = rest[size:]
        assert expected.startswith(sent)
    assert sent + finder.finish() == expected
    assert finder.found == bool(ends)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    finder = StopStrings(["end", "x"])
    assert finder.push("a x end") == "a "
    assert finder.push("more") == finder.finish() == ""


def test_a_stop_string_that_does_not_come_is_text() -> None:
    finder = StopStrings(["\n\nUser"])
    assert finder.push("hello\n\nUs") == "hello"
    assert finder.push("age") == "\n\nUsage"
    assert finder.finish() == ""


@pytest.mark.parametrize(
    ("template", "last"),
    [
        (CHAT_TEMPLATE, "<|im_start|>user\n  ask<|im_end|>\n<|im_start|>assistant\n"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]{% else %} "
            "{{ m.content }}</s>{% endif %}{% endfor %}",
            "[INST] ask [/INST]",
        ),
        (  # which thinks in the last of its turns alone
            "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think></think>"
            "{% endif %}{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "<|user|>  ask<end><|assistant|>",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "ask"),
    ],
    ids=["chatml", "inst", "thinking", "bare"],
)
def test_a_prompt_knows_where_its_last_user_turn_begins(template: str, last: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    codec = TextCodec(tokenizer, context=400)
    chat = [Message("user", "ask"), Message("assistant", "say"), Message("user", "  ask")]
    prompt = codec.encode_chat(chat)
    assert prompt.text[prompt.last_turn :] == last
    answered = codec.encode_chat([*chat, Message("assistant", "ask")])
    assert answered.text[: answered.last_turn] == prompt.text[: prompt.last_turn]
    for begins in (
        codec.encode_chat(chat[:1]),
        codec.encode_chat([Message("assistant", "say")]),
        codec.encode("ask"),
    ):
        assert begins.last_turn == 0


def test_what_opens_a_user_turn_is_the_same_whatever_its_words_are() -> None:
    codec = TextCodec(TOKENIZER, context=400)
    opening = codec.user_opening()
    assert TOKENIZER.decode(opening) == "<|im_start|>user"
    for words in ("ask", "\n\nask", " ask", "\u65e5", "user"):
        prompt = codec.encode_chat([Message("system", "say"), Message("user", words)])
        begin = prompt.token_at(prompt.last_turn)
        assert prompt.ids[begin : begin + len(opening)] == opening
