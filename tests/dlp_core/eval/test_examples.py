"""Examples are drawn by outcome and task; costs are those of the answers that were measured."""

from __future__ import annotations

from collections import Counter

import pytest

from dlp_core.eval.cost import cost_of
from dlp_core.eval.examples import Candidate, choose_examples, outcome
from dlp_core.eval.journal import Answer
from dlp_core.eval.rows import EvalRow

RIGHT = {"plain": 0.0, "oracle": 1.0, "top-p=0.9": 1.0}


def candidates(scores: dict[str, float], number: int, *, tasks: int = 1, first: int = 0) -> list[Candidate]:
    return [
        Candidate(EvalRow(str(first + n), f"task{n % tasks}", "qa", "?", "!"), dict.fromkeys(scores, "!"), dict(scores))
        for n in range(number)
    ]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (RIGHT, "better than the plain model"),
        (RIGHT | {"top-p=0.9": 0.5}, "worse than the right adapter"),
        (RIGHT | {"oracle": 0.5}, "better than the right adapter"),
        ({"plain": 1.0, "top-p=0.9": 0.0}, "worse than the plain model"),
        ({"plain": 1.0, "top1": 1.0}, "no difference, full score"),
        ({"plain": 0.4}, "no difference, not the full score"),
    ],
)
def test_the_outcome_of_a_row(scores: dict[str, float], expected: str) -> None:
    assert outcome(scores) == expected


def test_losses_are_shown_beside_wins() -> None:
    rows = [
        *candidates(RIGHT, 60, tasks=4),
        *candidates(RIGHT | {"top-p=0.9": 0.0}, 2, first=100),
        *candidates(dict.fromkeys(RIGHT, 0.0), 30, tasks=4, first=200),
    ]
    chosen = choose_examples(rows, seed=0)
    assert Counter((example.outcome, example.alike) for example in chosen) == {
        ("better than the plain model", 60): 4,
        ("no difference, not the full score", 30): 4,
        ("worse than the right adapter", 2): 2,
    }
    assert set(Counter(example.task for example in chosen).values()) <= {2, 3, 4}
    assert chosen == choose_examples(rows[::-1], seed=0), "the same whatever the order"
    assert chosen != choose_examples(rows, seed=1)
    assert len(choose_examples(rows[:3], seed=0)) == 3


def test_the_cost_of_an_arm_counts_measured_answers() -> None:
    old = Answer("x", 9, 1)
    measured = [Answer("x", tokens, 1, prompt_tokens=10, seconds=tokens / 10) for tokens in (1, 3)]
    cost = cost_of([old, *measured])
    assert cost is not None
    assert (cost.answers, cost.prompt_tokens, cost.completion_tokens) == (2, 20, 4)
    assert cost.seconds == pytest.approx(0.2)
    assert cost.seconds_p95 == pytest.approx(0.29)
    assert cost.tokens_per_second == pytest.approx(10)
    assert cost_of([old]) is None
