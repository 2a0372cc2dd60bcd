"""Which part of a text is about which task, with the demo's router."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dlp_core.router import Router
from dlp_core.router.passages import Passage, passages, passages_first, read, starts

ROOT = Path(__file__).parents[3]
CRON = "Write a cron expression for every weekday at 7:30 am."
DATE = "Convert May 3rd, 2021 to YYYY-MM-DD."
SQL = "Table users(id, name, age). How many users are older than 30?"
PLANETS = "Which planet is the largest of all? I would like to know for a quiz."


@cache
def router() -> Router:
    return Router.load(ROOT / "examples/bank/router")


def divided(text: str) -> list[tuple[str, str]]:
    """The passages of a text, and the adapter that serves each."""
    found = passages_first(router(), [text])
    assert [passage.start for passage in found] == [0, *(passage.end for passage in found[:-1])]
    assert found[-1].end == len(text)
    return [
        (text[passage.start : passage.end].strip(), next(iter(passage.routing.mix().names), "")) for passage in found
    ]


@pytest.mark.parametrize("between", [" ", "\n", "\n\n"])
def test_two_tasks_come_apart_where_one_ends(between: str) -> None:
    assert divided(f"{CRON}{between}{DATE}") == [(CRON, "cron"), (DATE, "iso_date")]


def test_more_tasks_come_apart_and_each_stays_whole() -> None:
    text = "".join(f"{number}. {part}\n\n" for number, part in enumerate((SQL, CRON, DATE, SQL), start=1))
    found = divided(text)
    assert [adapter for _, adapter in found] == ["text_to_sql", "cron", "iso_date", "text_to_sql"]
    assert found[0][0] == f"1. {SQL}"


def test_prompts_of_one_task_have_the_routing_of_the_request() -> None:
    rows = [json.loads(line) for line in (ROOT / "examples/bank/handwritten.jsonl").read_text().splitlines()]
    texts = [row["input"] for row in rows if row["task"] is not None]
    for text, routing in zip(texts, router().route(texts), strict=True):
        assert passages(router(), text, routing) == [Passage(0, len(text), routing)]


def test_two_prompts_of_one_task_are_one_passage() -> None:
    text = f"{CRON}\n\nCron expression for midnight on the first of the month."
    [routing] = router().route([text])
    assert passages(router(), text, routing) == [Passage(0, len(text), routing)]


def test_what_fits_no_adapter_has_one_passage() -> None:
    assert divided(PLANETS) == [(PLANETS, "")]
    assert divided(f"{PLANETS}\n\nTell me a joke.") == [(f"{PLANETS}\n\nTell me a joke.", "")]


@pytest.mark.parametrize("text", ["", " \n\n ", "x", "é.\n\n日本語。次の文。\n\n🙂🙂. ok", "a\x00b.\n\n\u200b c."])
def test_any_text_is_divided(text: str) -> None:
    [routing] = router().route([text])
    found = passages(router(), text, routing)
    assert "".join(text[passage.start : passage.end] for passage in found) == text


def test_an_instruction_that_decides_is_for_the_whole_text() -> None:
    data = "the third of March 2021. the 4th of july 1776."
    instruction = "Convert every date that you are given to YYYY-MM-DD."
    texts = ["blue", f"{instruction}\n\n{data}"]
    [routing] = router().route_first([texts])
    assert routing.turn == 1
    assert passages_first(router(), texts) == [Passage(0, len("blue"), routing)]


def test_with_one_adapter_there_is_nothing_to_divide() -> None:
    assert read(router().only(["cron"]), f"{CRON}\n\n{DATE}") is None


def test_a_long_text_has_as_few_parts_as_a_short_one() -> None:
    text = "\n\n".join(f"{CRON} {DATE}\n{SQL}" for _ in range(200))
    found = starts(text, most=16)
    assert len(found) == 16
    assert all(text[start - 2 : start] == "\n\n" for start in found[1:]), "paragraphs come first"
    runs = read(router(), text)
    assert runs is not None
    assert len(runs.found) == 16 * 17 / 2


def test_options_stay_with_their_question() -> None:
    question = "What is the capital of Peru?\n(A) Lima\n(B) Quito\n\n2. Next"
    assert [question[start:] for start in starts(question, most=16)] == [question, "2. Next"]


def test_runs_are_read_like_the_texts_they_are() -> None:
    parts = [f"{CRON}\n\n", f"{DATE} ", SQL]
    runs = [(0, 1), (1, 2), (0, 2), (0, 3), (2, 3)]
    texts = ["".join(parts[first:last]) for first, last in runs]
    encoder = router().encoder
    close, exact = encoder.encode_runs(parts, runs), encoder.encode(texts)
    assert np.allclose(close[[0, 1, 4]], exact[[0, 1, 4]], atol=1e-5), "one part: the same"
    cosine = np.vecdot(close, exact) / np.linalg.norm(close, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99
    assert not encoder.encode_runs([" \n", "x"], [(0, 1)]).any()
