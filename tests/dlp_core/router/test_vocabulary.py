"""Words as pieces: known ones as they are, mistyped ones corrected, others split."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlp_core.router.features import HEAD
from dlp_core.router.spelling import MAX_CORRECTIONS
from dlp_core.router.vocabulary import Vocabulary

WORDS = "pay send money bill rent now , ! mon ##ey ##x ##y".split()
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 50,
            "vocab": {"[UNK]": 0} | {word: index for index, word in enumerate(WORDS, start=1)},
        },
    }
)


def _index(*pieces: str) -> list[int]:
    return [WORDS.index(piece) + 1 for piece in pieces]


VOCABULARY = Vocabulary(TOKENIZER, np.array(_index("money", "send", "bill"), np.int32))


def _pieces(text: str) -> list[int]:
    return VOCABULARY.features([text])[0].pieces.tolist()


def test_known_words_are_pieces_in_any_case() -> None:
    assert _pieces("Send MONEY, now!") == _index("send", "money", ",", "now", "!")


def test_half_of_an_emoji_is_read_as_any_unknown_character() -> None:
    assert _pieces("send \ud83d money") == _pieces("send ? money")


def test_a_mistyped_word_is_read_as_one_of_the_training() -> None:
    assert _pieces("send monye now") == _index("send", "money", "now")
    assert VOCABULARY.features(["send monye now"])[0].grams.tolist() == (
        VOCABULARY.features(["send money now"])[0].grams.tolist()
    )


def test_a_word_that_the_training_did_not_have_is_not_corrected_towards() -> None:
    assert _pieces("rentx") == [*_index("rent"), *_index("##x")]


def test_unknown_words_are_split_as_the_tokenizer_does_it() -> None:
    assert _pieces("monx") == _index("mon", "##x")
    assert _pieces("zzz") == [0]


def test_corrections_are_bounded() -> None:
    slips = " ".join(["monye"] * (MAX_CORRECTIONS + 5))
    assert _pieces(slips) == _index("money") * MAX_CORRECTIONS + [0] * 5


@pytest.mark.parametrize("text", ["", " \n\t", "   "])
def test_text_without_a_visible_character_has_no_features(text: str) -> None:
    assert [len(part) for part in VOCABULARY.features([text])[0]] == [0, 0]


@settings(max_examples=60)
@given(st.lists(st.text(), max_size=5))
def test_a_batch_gives_each_text_what_it_gets_alone(texts: list[str]) -> None:
    for text, features in zip(texts, VOCABULARY.features(texts), strict=True):
        alone = VOCABULARY.features([text])[0]
        assert [part.tolist() for part in features] == [part.tolist() for part in alone]
        assert (features.pieces < VOCABULARY.size).all()


def test_of_a_long_text_only_head_and_tail_are_read() -> None:
    assert len(_pieces("pay " * 100_000)) < HEAD
