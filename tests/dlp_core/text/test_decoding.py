"""Any tokens, in any order, of any kind of vocabulary: nothing raises, and the text is that of decoding all at once."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dlp_core.text.codec import TextCodec
from dlp_core.text.decoding import UNKNOWN, IncrementalDecoder, Pieces
from tests.support.vocabularies import FAMILIES

BYTE_FALLBACK = FAMILIES["byte fallback (Llama 2, Mistral)"]
BYTE_LEVEL = FAMILIES["byte level (GPT-2, Llama 3, Qwen)"]

every_family = pytest.mark.parametrize("tokenizer", FAMILIES.values(), ids=FAMILIES)


def streamed(tokenizer: PreTrainedTokenizerFast, prompt: list[int], ids: list[int]) -> str:
    decoder = IncrementalDecoder(Pieces(tokenizer), prompt)
    return "".join([*map(decoder.push, ids), decoder.finish()])


def ids_of(tokenizer: PreTrainedTokenizerFast, *pieces: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]


@every_family
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_the_text_of_tokens_one_by_one_is_that_of_all_at_once(
    data: st.DataObject, tokenizer: PreTrainedTokenizerFast
) -> None:
    token = st.integers(0, len(tokenizer) + 3)  # beyond the tokenizer, as in a padded vocabulary
    prompt, ids = data.draw(st.lists(token, max_size=20)), data.draw(st.lists(token, max_size=40))
    text = streamed(tokenizer, prompt, ids)
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode(prompt + ids, skip_special_tokens=True)
    if not before.endswith(UNKNOWN) and whole.startswith(before) and not whole.endswith(UNKNOWN):
        assert text == whole[len(before) :]
    if not before.endswith(UNKNOWN) and tokenizer is not BYTE_FALLBACK:
        assert not text.endswith(UNKNOWN)


@every_family
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tokens_have_texts_logprobs_and_places(data: st.DataObject, tokenizer: PreTrainedTokenizerFast) -> None:
    codec = TextCodec(tokenizer, context=64)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3), min_size=1, max_size=30))
    stream = codec.stream(codec.decode_prompt(ids), ["the"])
    sent = ""
    for token in ids:
        sent += stream.push([token])
        assert stream.released <= stream.tokens
        text, data_ = codec.token_text(token)
        assert text == data_.decode(errors="replace")
    sent += stream.finish()
    assert stream.stopped or stream.released == len(ids)
    assert [stream.offset(token) for token in range(stream.tokens)] == sorted(map(stream.offset, range(stream.tokens)))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=30))
@example([0xF0, 0x9F, 0x8E, 0x89, 0xF0])
def test_a_run_of_bytes_is_one_text(run: list[int]) -> None:
    """As decoding all does it: one byte that fits nowhere, and none of the run is a character."""
    ids = ids_of(BYTE_FALLBACK, "a", *(f"<0x{byte:02X}>" for byte in run), "▁the")
    assert streamed(BYTE_FALLBACK, ids[:1], ids[1:]) == BYTE_FALLBACK.decode(ids)[1:]


def test_a_run_of_bytes_ends_with_its_last_whole_character() -> None:
    ids = ids_of(BYTE_FALLBACK, "a", "<0xF0>", "<0x9F>", "<0x8E>", "<0x89>", "<0xF0>", "<0x9F>")
    assert streamed(BYTE_FALLBACK, [], ids) == "a🎉"


def test_replacement_characters_are_text_where_other_text_follows() -> None:
    [unknown, word] = ids_of(BYTE_LEVEL, "ï¿½", "the")
    decoder = IncrementalDecoder(Pieces(BYTE_LEVEL), [unknown])
    assert [decoder.push(unknown), decoder.push(unknown), decoder.held] == ["", "", 2]
    assert [decoder.push(word), decoder.held] == [2 * UNKNOWN + "the", 0]
    assert [decoder.push(unknown), decoder.finish()] == ["", ""]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte level", "byte fallback"])
def test_a_prompt_may_end_in_half_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    byte = {0xF0: "ð", 0x9F: "Ł", 0x8E: "İ", 0x89: "ī"} if tokenizer is BYTE_LEVEL else {}
    party = ids_of(tokenizer, *(byte.get(one, f"<0x{one:02X}>") for one in "🎉".encode()))
    word = ids_of(tokenizer, "the")
    assert streamed(tokenizer, [*word, *party[:2]], [*party[2:], *word]) == "🎉the"


def test_a_thousand_tokens_within_a_character_take_no_longer_each() -> None:
    decoder = IncrementalDecoder(Pieces(BYTE_LEVEL))
    [token, word] = ids_of(BYTE_LEVEL, "ð", "the")
    assert "".join(decoder.push(token) for _ in range(1000)) == ""
    assert len(decoder._window) <= 16
    assert decoder.push(word) == UNKNOWN * 1000 + "the"


def test_the_logprobs_of_a_held_character_are_held() -> None:
    codec = TextCodec(BYTE_FALLBACK, context=64)
    party = ids_of(BYTE_FALLBACK, *(f"<0x{one:02X}>" for one in "🎉".encode()))
    stream = codec.stream(codec.decode_prompt(ids_of(BYTE_FALLBACK, "the")))
    assert stream.push(party) == ""
    assert stream.released == 0
    assert stream.push(ids_of(BYTE_FALLBACK, "the")) == "🎉the"
    assert stream.released == 5


def test_a_token_that_the_tokenizer_does_not_have_is_no_text() -> None:
    codec = TextCodec(BYTE_LEVEL, context=64)
    assert codec.token_text(len(BYTE_LEVEL) + 5) == ("", b"")


def test_a_word_within_a_text_keeps_its_space() -> None:
    codec = TextCodec(BYTE_FALLBACK, context=64)
    assert codec.token_text(ids_of(BYTE_FALLBACK, "▁the")[0]) == (" the", b" the")
    assert codec.token_text(BYTE_FALLBACK.eos_token_id) == ("</s>", b"</s>")
