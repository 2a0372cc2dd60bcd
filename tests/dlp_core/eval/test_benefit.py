"""Soft labels from scores: the formula of dlp_core/eval/benefit.py."""

from __future__ import annotations

import math

import pytest

from dlp_core.eval.benefit import PRIOR_ROWS, TEMPERATURE, Scores, pooled, soft_labels


def test_a_gain_is_per_token_and_over_the_backbone() -> None:
    scores = Scores(4, -12.0, {"a": -4.0, "b": -14.0})
    assert scores.gains() == {"a": 2.0, "b": -0.5}


def test_of_a_multiple_choice_the_choice_counts_beside_the_words() -> None:
    scores = Scores(10, -30.0, {"form": -1.0, "content": -28.0}, -1.0, {"form": -2.5, "content": -0.1})
    gains = scores.gains()
    assert gains["form"] == pytest.approx(2.9 - 1.5)
    assert gains["content"] == pytest.approx(0.2 + 0.9)


def test_rows_are_drawn_to_the_mean_of_their_task() -> None:
    gains = [{"a": 1.0}, {"a": 3.0}, {"a": -5.0}]
    first, second, alone = pooled(gains, ["x", "x", None])
    assert first["a"] == pytest.approx((PRIOR_ROWS * 1.0 + 4.0) / (PRIOR_ROWS + 2))
    assert second["a"] == pytest.approx((PRIOR_ROWS * 3.0 + 4.0) / (PRIOR_ROWS + 2))
    assert alone == {"a": -5.0}
    [single] = pooled([{"a": 0.7}], ["y"])
    assert single["a"] == pytest.approx(0.7)


def test_with_many_rows_one_lucky_row_has_its_tasks_label() -> None:
    gains = [{"a": -1.0}] * 99 + [{"a": 2.0}]
    assert sum(soft_labels(pooled(gains, ["x"] * 100)[-1]).values()) < 0.5


@pytest.mark.parametrize("gain", [-2.0, -0.25, 0.0, 0.25, 1.0])
def test_one_adapter_against_the_backbone(gain: float) -> None:
    assert soft_labels({"a": gain})["a"] == pytest.approx(1 / (1 + math.exp(-gain / TEMPERATURE)), abs=1e-4)


def test_adapters_that_do_not_help_do_not_make_one_more_likely() -> None:
    few, many = soft_labels({"a": -1.0}), soft_labels(dict.fromkeys("abcdefgh", -1.0))
    assert sum(many.values()) == pytest.approx(few["a"], abs=1e-3)


def test_adapters_that_hurt_take_nothing_from_one_that_helps() -> None:
    helped = soft_labels({"a": 1.0, **{f"b{n}": -1.0 for n in range(25)}})
    assert helped["a"] > 0.9


def test_the_temperature_says_what_a_clear_gain_is() -> None:
    gains = {"a": 0.5, "b": 0.3}
    soft, hard = soft_labels(gains, temperature=1.0), soft_labels(gains, temperature=0.05)
    assert soft["a"] / soft["b"] == pytest.approx(math.exp(0.2), rel=1e-2)
    assert hard["a"] > 0.97
    assert soft_labels({}) == {}
