"""Hashed features: the contract a saved router depends on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlp_core.router.features import BUCKETS, HEAD, PER_TOKEN, TAIL, Features, featurise

GOLDEN = [
    43233,
    14919,
    21720,
    40713,
    47330,
    30913,
    56944,
    62585,
    56942,
    24641,
    60820,
    23228,
    28769,
    36179,
    43804,
]  # three for each of the five tokens


def test_buckets_are_the_same_on_every_machine() -> None:
    """Saved routers depend on these. If they change, increase features.VERSION."""
    assert featurise(["Hello world, 42!"]).buckets.tolist() == GOLDEN


@settings(max_examples=40)
@given(st.lists(st.text(), min_size=1, max_size=6))
def test_a_batch_gives_each_text_what_it_gets_alone(texts: list[str]) -> None:
    together = featurise(texts)
    ends = [*together.starts[1:], len(together.buckets)]
    for text, start, end in zip(texts, together.starts, ends, strict=True):
        assert together.buckets[start:end].tolist() == featurise([text]).buckets.tolist()


@settings(max_examples=40)
@given(st.text())
def test_any_text_gives_buckets_of_the_table(text: str) -> None:
    buckets = featurise([text]).buckets
    assert ((buckets >= 0) & (buckets < BUCKETS)).all()


def test_case_and_the_digits_of_a_number_do_not_matter_but_their_count_does() -> None:
    assert _buckets("Add 12 APPLES") == _buckets("add 97 apples")
    assert _buckets("add 12 apples") != _buckets("add 123 apples")


def test_order_matters() -> None:
    assert sorted(_buckets("dog bites man")) != sorted(_buckets("man bites dog"))


@pytest.mark.parametrize("text", ["", " ", "\t \x00 \r"])
def test_text_without_a_visible_character_has_no_features(text: str) -> None:
    assert featurise([text]).counts().tolist() == [0]


def test_only_head_and_tail_of_a_long_text_are_read() -> None:
    head, tail = "alpha " * (HEAD // 6), " omega" * (TAIL // 6 + 1)
    long, longer = head + "x " * 5_000 + tail, head + "y " * 50_000 + tail
    assert _buckets(long) == _buckets(longer)
    assert len(_buckets(longer)) <= PER_TOKEN * (HEAD + TAIL + 1)


def test_head_and_tail_of_each_text() -> None:
    features = Features(np.arange(10), np.array([0, 0, 2]))  # texts of 0, 2 and 8 features
    head, tail = features.ends(3), features.ends(-3)
    assert (head.buckets.tolist(), head.starts.tolist()) == ([0, 1, 2, 3, 4], [0, 0, 2])
    assert (tail.buckets.tolist(), tail.starts.tolist()) == ([0, 1, 7, 8, 9], [0, 0, 2])
    both = Features.concatenate([head, tail])
    assert both.counts().tolist() == [0, 2, 3, 0, 2, 3]


def _buckets(text: str) -> list[int]:
    return featurise([text]).buckets.tolist()
