"""Which words drive a routing: those a reader would name, with effects that match the router."""

from __future__ import annotations

import math

import pytest

from dlp_core.router.explanation import MAX_PIECES, explain, explain_first
from tests.support.router_rows import make_rows, trained

TEXT = "Sort the following words alphabetically:\nriver lamp cabinet engine"


def test_words_are_in_order() -> None:
    words = explain(trained()[0], TEXT, "word_sorting")
    assert [word.text for word in words] == TEXT.split()
    assert all(math.isfinite(word.effect) for word in words)


def test_the_instruction_has_the_largest_effect() -> None:
    words = explain(trained()[0], TEXT, "word_sorting")
    best = max(words, key=lambda word: word.effect)
    assert best.text in {"Sort", "following", "words", "alphabetically:"}


def test_the_effect_is_the_change_without_the_word() -> None:
    router, _ = trained()
    text = "Sum the words alphabetically"
    full, occluded = router.log_odds([text, text.removeprefix("Sum")], "word_sorting")
    assert explain(router, text, "word_sorting")[0].effect == pytest.approx(full - occluded, abs=1e-3)


@pytest.mark.parametrize("text", ["", " \n", "\0", "x", "word " * 9000])
def test_any_text_can_be_explained(text: str) -> None:
    words = explain(trained()[0], text, "word_sorting")
    assert len(words) <= MAX_PIECES
    assert all(math.isfinite(word.effect) for word in words)


def test_log_odds_match_the_probabilities() -> None:
    router, _ = trained()
    texts = [row.input for row in make_rows(5, seed=3)] + ["What shall I cook?", ""]
    for label in router.labels:
        for routing, odds in zip(router.route(texts), router.log_odds(texts, label), strict=True):
            fits_and_is_it = (1 - routing.none) * routing.probabilities[label]
            assert 1 / (1 + math.exp(-odds)) == pytest.approx(fits_and_is_it, abs=1e-5)


@pytest.mark.parametrize("text", ["", "hi", "  hi\n"])
def test_one_word_is_not_explained_by_what_an_empty_text_would_be(text: str) -> None:
    assert explain_first(trained()[0], [text]).words == ()


def test_where_no_adapter_fits_the_words_speak_for_or_against_any() -> None:
    router, _ = trained()
    text = "What shall I cook tonight?"
    assert not router.route([text])[0].fits
    explanation = explain_first(router, [text])
    assert explanation.adapter is None
    without = router.route([text.removesuffix(" tonight?")])[0].margin
    assert explanation.words[-1].effect == pytest.approx(router.route([text])[0].margin - without, abs=1e-3)
