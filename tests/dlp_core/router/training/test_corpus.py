"""What a router is trained on: which texts, with which tasks."""

from __future__ import annotations

from random import Random

import pytest

from dlp_core.router.augment import degrade, mistype, reword
from dlp_core.router.training import corpus, everyday
from dlp_core.router.training.examples import Example, label, split
from tests.support.router_rows import make_rows

ROWS = make_rows(20, seed=0)


def test_everyday_requests_are_always_the_same_and_those_to_measure_by_have_frames_of_their_own() -> None:
    assert everyday.requests(50) == everyday.requests(50)
    held_back = set(everyday.requests(300, held_back=True))
    assert len(held_back) > 200
    assert not held_back & set(everyday.requests(everyday.COUNT))


def test_every_row_has_its_variants_and_its_tasks() -> None:
    labels, examples = label(ROWS)
    built = corpus.build([*examples, Example("who won the match", ())], None, Random(0))
    assert len(built.rows) == len(built.degraded) == len(built.swapped) == len(ROWS)
    assert sorted(sample.tasks for sample in built.rows) == sorted(sample.tasks for sample in built.swapped)
    assert [sample.text for sample in built.background] == ["who won the match"]
    assert all(not sample.tasks for sample in built.everyday)
    assert len(built.everyday) > 5000
    assert not built.meanings(built.samples[:3]).size
    assert len(labels) == 4


def test_half_of_the_strangers_are_rows_if_there_are_enough() -> None:
    _, examples = label(ROWS)
    built = corpus.build([*examples, *(Example(f"stranger {n}", ()) for n in range(40))], None, Random(0))
    drawn = built.strangers(60, Random(0))
    assert sum(sample.text.startswith("stranger") for sample in drawn) == 30


@pytest.mark.parametrize("per_task", [8, 20, 400])
def test_some_rows_of_every_task_are_held_back(per_task: int) -> None:
    _, examples = label(make_rows(per_task, seed=1))
    training, held_back = split(examples, Random(0))
    assert sorted(training + held_back) == sorted(examples)
    for task in range(4):
        assert 2 <= sum(example.tasks == (task,) for example in held_back) <= max(2, per_task / 8)


def test_a_line_is_mistyped_and_several_lines_lose_their_first() -> None:
    rng = Random(0)
    text = "Sort the words.\nriver lamp cabinet engine violin"
    assert any(degrade(text, rng) == "river lamp cabinet engine violin" for _ in range(40))
    assert all(len(degrade("pay my bill", rng)) <= len("pay my bill") for _ in range(20))
    assert mistype("pay my bill", rng, 0.0) == "pay my bill"


def test_rewording_replaces_the_opening() -> None:
    reworded = {reword("can you pay my bill", Random(seed)) for seed in range(40)}
    assert all("pay my bill" in text for text in reworded)
    assert not any("can you can you" in text or "please can you" in text for text in reworded)
    assert len(reworded) > 10
