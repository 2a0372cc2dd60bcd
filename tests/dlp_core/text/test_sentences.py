"""Sentence starts: abbreviations, numbers, code, lists, scripts without spaces; however the text is split."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.text import sentences
from dlp_core.text.sentences import SentenceStarts, split

CASES = {
    "abbreviations": [
        "Dr. Smith met Mrs. Jones at 5 p.m. on Friday. ",
        "They saw e.g. a film, i.e. a talkie. ",
        "Fine.",
    ],
    "decimals": ["It costs 3.50 dollars, not 4.00. ", "Version 2.0 is out."],
    "ellipsis": ["Well... ", "Really? ", "Yes!"],
    "quotes": ['He said "Stop." ', "Then he left."],
    "brackets": ["See the notes (p. 5). ", "Then go on."],
    "addresses": ["Write to a.b@example.com or see www.example.com/x.y for more. ", "Bye."],
    "paragraphs": ["A heading without a stop\n\n", "A paragraph. ", "Another sentence."],
    "wrapped prose": ["This line goes on\nin the next one. ", "Here is another."],
    "list": ["Steps:\n", "- boil water\n", "- add tea\n", "* wait\n", "1. First thing\n", "2. Second thing"],
    "heading": ["# Title\n", "## Part. ", "One"],
    "code": ["Run this:\n", "```python\nx = 1.  \nprint(x). Then y\n\nz = 2\n```\n", "Done. ", "Next one."],
    "code with tildes": ["Look:\n", "~~~\na. B. C.\n```\n~~~\n", "Good."],
    "unfinished code": ["Look. ", "Here:\n", "```\nfirst. Second. "],
    "unfinished": ["One is done. ", "Two is not"],
    "chinese": ["今天天气很好。", "我们去公园吧！", "好吗？"],  # noqa: RUF001
    "japanese": ["これはペンです。", "あれは本です。"],
    "mixed scripts": ["Hello. ", "今天天气很好。", "Bye now."],
    "questions": ["Who? ", "When?! ", "Why not"],
    "json": ['{"a": "b. c", "d": 1.5}'],
    "blank": [],
}


@pytest.mark.parametrize("name", CASES)
def test_sentences(name: str) -> None:
    text = "".join(CASES[name])
    assert [text[start:end] for start, end in split(text)] == CASES[name]


def test_whitespace_alone_is_not_a_sentence() -> None:
    assert split(" \n ") == []


def test_a_start_is_reported_with_its_first_character() -> None:
    starts = SentenceStarts()
    assert starts.push("Dr. Smith paid 3.50 dollars.") == []
    assert starts.push("  ") == []
    assert starts.push("H") == [30]
    assert starts.push("e left.") == []


PIECES = st.lists(
    st.one_of(
        st.sampled_from([*(part for parts in CASES.values() for part in parts), "\n", "```", ". ", "。", "3", "- "]),
        st.text(max_size=12),
    ),
    max_size=12,
)


@given(PIECES, st.lists(st.integers(1, 7), min_size=1))
def test_pieces_do_not_matter(parts: list[str], sizes: list[int]) -> None:
    text = "".join(parts)
    starts, found, at, i = SentenceStarts(), [], 0, 0
    while at < len(text):
        size = sizes[i % len(sizes)]
        found += starts.push(text[at : at + size])
        at, i = at + size, i + 1
    assert found == SentenceStarts().push(text)
    sentences = split(text)
    assert "".join(text[start:end] for start, end in sentences) == (text if text.strip() else "")
    assert all(text[start:end].strip() for start, end in sentences)


def test_a_long_text_without_an_end_stays_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prose rules see a bounded text, a bounded number of times."""
    seen: list[int] = []

    def segment(language: str, text: str) -> list[str]:
        seen.append(len(text))
        return [text]

    monkeypatch.setattr(sentences, "sentencex", SimpleNamespace(segment=segment))
    SentenceStarts().push("a, " * 10_000)
    assert 0 < len(seen) < sentences._MAX_PROSE_CHARS
    assert max(seen) <= sentences._MAX_PROSE_CHARS + len(", a")
