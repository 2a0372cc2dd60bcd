"""One slip is corrected, towards the words of the training; everything else is left alone."""

from __future__ import annotations

import pytest

from dlp_core.router.spelling import MAX_LETTERS, Speller

SPELLER = Speller(["the", "transfer", "money", "weather", "whether", "from", "account", "in", "french"])


@pytest.mark.parametrize(
    ("word", "correction"),
    [
        ("tranfer", "transfer"),
        ("transferr", "transfer"),
        ("tramsfer", "transfer"),
        ("tranfser", "transfer"),
        ("fransfer", "transfer"),
        ("wether", "weather"),  # and "whether", which is rarer
        ("accuont", "account"),
        ("infrench", "in french"),
        ("inxfrench", "in french"),
        ("fromthe", "from the"),
    ],
)
def test_one_slip_is_corrected(word: str, correction: str) -> None:
    assert SPELLER.correct(word) == correction


@pytest.mark.parametrize("word", ["mny", "trnsfr", "kubernetes", "mone7", "", "a" * (MAX_LETTERS + 1), "monetary"])
def test_what_is_not_one_slip_away_is_left_alone(word: str) -> None:
    assert SPELLER.correct(word) is None


def test_two_slips_are_too_many() -> None:
    assert SPELLER.correct("tramsfar") is None
