"""Hashed n-grams: the contract a saved router depends on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlp_core.router.features import BUCKETS, HEAD, MAX_GRAMS, TAIL, clip, ngrams

PIECES = np.array([7, 30_000])
GOLDEN = [
    19029, 8985, 23738, 5181, 25917, 31096, 7074, 19456, 15867, 11225, 17289, 26663,
    4203, 21555, 27878, 6460, 9934, 4041,
]  # fmt: skip


def _buckets(text: str, pieces: np.ndarray = PIECES[:0]) -> list[int]:
    return ngrams(text, pieces).tolist()


def test_buckets_are_the_same_on_every_machine() -> None:
    """Saved routers depend on these. If they change, increase features.VERSION."""
    assert _buckets("Hi, 42", PIECES) == GOLDEN


@settings(max_examples=40)
@given(st.text(), st.lists(st.integers(0, 40_000), max_size=20))
def test_any_text_gives_buckets_of_the_table(text: str, pieces: list[int]) -> None:
    buckets = ngrams(text, np.array(pieces, np.int64))
    assert ((buckets >= 0) & (buckets < BUCKETS)).all()


def test_case_space_and_digits_do_not_matter_but_the_length_of_a_number_does() -> None:
    assert _buckets("Add 12\n APPLES ") == _buckets("add 97 apples")
    assert _buckets("add 12 apples") != _buckets("add 123 apples")


def test_order_matters() -> None:
    assert sorted(_buckets("a", np.array([5, 6, 7]))) != sorted(_buckets("a", np.array([6, 5, 7])))


@pytest.mark.parametrize("text", ["", " ", "\t \r\n"])
def test_text_without_a_visible_character_has_no_features(text: str) -> None:
    assert _buckets(text) == []


def test_only_head_and_tail_of_a_long_text_are_read() -> None:
    head, tail = "alpha " * (HEAD // 6), " omega" * (TAIL // 6 + 1)
    assert clip(head + "x " * 5_000 + tail) == clip(head + "y " * 50_000 + tail)
    assert clip("short") == "short"
    longest = clip("\N{GRINNING FACE}" * 9_000)
    assert len(_buckets(longest, np.zeros(len(longest), np.int64))) <= MAX_GRAMS
