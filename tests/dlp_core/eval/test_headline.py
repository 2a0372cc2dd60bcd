"""The verdict of a report is true whoever wins."""

from __future__ import annotations

import re

import pytest

from dlp_core.eval.headline import figures, sentence
from tests.support.eval_results import make_results, uniform

SCOPE = "On 40 prompts of 4 tasks, the routed bank answers "


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        (
            {"plain": 1, "oracle": 8, "top-p=0.9": 8},
            "80% right: it beats the plain model (10%) and does not differ measurably from the right adapter (80%).",
        ),
        (
            {"plain": 8, "oracle": 9, "top-p=0.9": 2},
            "20% right: it falls short of the plain model (80%) and falls short of the right adapter (90%).",
        ),
        (
            {"plain": 5, "oracle": 3, "top-p=0.9": 5},
            "50% right: it does not beat the plain model (50%, the same score) and beats the right adapter (30%).",
        ),
        ({"plain": 0, "top-p=0.9": 10}, "100% right: it beats the plain model (0%)."),
        ({"top-p=0.9": 3}, "30% right."),
    ],
)
def test_a_verdict_follows_from_the_scores(right: dict[str, int], verdict: str) -> None:
    text = sentence(make_results(uniform(4, 10, right)))
    assert text == f"{SCOPE}{verdict} The router ranks the right adapter first for 10%."


def test_a_difference_within_its_interval_is_no_win() -> None:
    tasks = {f"task{number}": [1.0, 0.0] * 5 for number in range(4)}
    ours = {task: [1.0, *values[1:-1], 1.0] for task, values in tasks.items()} | {"task0": [0.0] * 10}
    text = sentence(make_results({"plain": tasks, "top-p=0.9": ours}))
    assert "it does not beat the plain model (50%, a difference within chance)." in text


def test_without_rows_scores_stand_side_by_side() -> None:
    results = make_results(uniform(2, 10, {"plain": 1, "oracle": 8, "top-p=0.9": 7}), keep_rows=False)
    assert "answers 70% right; the plain model 10%, the right adapter 80%." in sentence(results)
    assert [figure.value for figure in figures(results)] == ["70%", "+60.0", "88%", "10%"]


def test_a_graded_metric_is_not_called_right() -> None:
    results = make_results(uniform(2, 10, {"plain": 1, "top-p=0.9": 7}), metrics=("rougeL", "accuracy"))
    assert "the routed bank scores 70.0 of 100: it beats the plain model (10.0)." in sentence(results)
    older = results.model_copy(update={"suite": results.suite.model_copy(update={"metrics": ()})})
    assert "scores 70.0 of 100" in sentence(older), "what older results do not say is not claimed"


def test_different_scores_never_look_the_same() -> None:
    scores = {"plain": {"a": [0.0] * 499 + [1.0]}, "top-p=0.9": {"a": [0.0] * 498 + [1.0] * 2}}
    assert re.search(r"answers 0\.4% right: .*\(0\.2%", sentence(make_results(scores)))


def test_the_scope_of_a_score_is_said() -> None:
    scores = {
        "plain": {"a": [0.0] * 4, "b": [0.0] * 8},
        "oracle": {"a": [1.0] * 4},
        "top1": {"a": [1.0] * 4, "b": [0.0] * 8},
    }
    text = sentence(make_results(scores))
    assert "right, counting every task equally: it" in text
    assert "the right adapter of the 1 task with an adapter (100%)" in text
    kept = figures(make_results(scores))[2]
    assert (kept.value, kept.label) == ("100%", "of the right adapter's score"), "on the tasks that both answered"


def test_a_bank_without_a_router_is_judged_by_its_adapters() -> None:
    results = make_results(uniform(2, 10, {"plain": 1, "oracle": 7})).model_copy(update={"router": None})
    assert (
        sentence(results)
        == "On 20 prompts of 2 tasks, the right adapter answers 70% right: it beats the plain model (10%)."
    )
    assert [figure.value for figure in figures(results)] == ["70%", "+60.0", "0.50 s", "20"]
    assert len(figures(make_results(uniform(2, 10, {"plain": 1})).model_copy(update={"router": None}))) == 4


def test_a_gain_has_its_interval() -> None:
    gain = figures(make_results(uniform(4, 10, {"plain": 1, "top-p=0.9": 8})))[1]
    assert gain.value == "+70.0"
    assert re.fullmatch(r"\+\d\d\.\d to \+\d\d\.\d \(95% interval\)", gain.note)
