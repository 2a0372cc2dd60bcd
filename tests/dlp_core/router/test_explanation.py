"""Which words moved a routing: they are those that a reader would name, and the numbers are the router's own."""

from __future__ import annotations

import math

import pytest

from dlp_core.router.explanation import MOST, explain
from tests.support.router_rows import make_rows, trained

TEXT = "Sort the following words alphabetically:\nriver lamp cabinet engine"


def test_every_word_stands_in_its_order() -> None:
    words = explain(trained()[0], TEXT, "word_sorting")
    assert [word.text for word in words] == TEXT.split()
    assert all(math.isfinite(word.effect) for word in words)


def test_the_instruction_moves_it_most() -> None:
    words = explain(trained()[0], TEXT, "word_sorting")
    best = max(words, key=lambda word: word.effect)
    assert best.text in {"Sort", "following", "words", "alphabetically:"}


def test_the_effect_is_what_the_router_says_without_the_word() -> None:
    router, _ = trained()
    text = "Sum the words alphabetically"
    whole, without = router.log_odds([text, text.removeprefix("Sum")], "word_sorting")
    assert explain(router, text, "word_sorting")[0].effect == pytest.approx(whole - without, abs=1e-3)


@pytest.mark.parametrize("text", ["", " \n", "\0", "x", "word " * 9000])
def test_any_text_can_be_explained(text: str) -> None:
    words = explain(trained()[0], text, "word_sorting")
    assert len(words) <= MOST
    assert all(math.isfinite(word.effect) for word in words)


def test_log_odds_are_those_of_the_mass() -> None:
    router, _ = trained()
    texts = [row.input for row in make_rows(5, seed=3)] + ["What shall I cook?", ""]
    for label in router.labels:
        for routing, odds in zip(router.route(texts), router.log_odds(texts, label), strict=True):
            assert 1 / (1 + math.exp(-odds)) == pytest.approx(routing.probabilities[label], abs=1e-5)
