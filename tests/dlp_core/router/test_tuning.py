"""Moving what a router keeps, without training it again."""

from __future__ import annotations

import numpy as np
import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.router.rows import TaskRow
from dlp_core.router.tuning import tuned
from tests.support.router_rows import make_rows, trained

ROWS = make_rows(60, seed=42)
STRANGERS = [TaskRow(None, text) for text in ("who won the match", "a poem about jazz", "is it far to the moon")]


def _kept(router: object, rows: list[TaskRow]) -> float:
    return float(np.mean([routing.fits for routing in router.route([row.input for row in rows])]))  # type: ignore[attr-defined]


def test_keeping_more_and_keeping_less() -> None:
    router = trained()[0]
    kept = [_kept(tuned(router, keep=keep, rows=ROWS), ROWS) for keep in (0.5, 0.8, 0.95)]
    assert kept == pytest.approx([0.5, 0.8, 0.95], abs=0.02)


def test_without_rows_it_is_about_what_the_training_held_back() -> None:
    router = trained()[0]
    assert tuned(router, keep=0.9).calibration.threshold == router.curve.threshold(0.9)
    assert tuned(router, keep=0.9).curve == router.curve


def test_only_the_threshold_moves() -> None:
    router = trained()[0]
    texts = [row.input for row in ROWS[::20]]
    for before, after in zip(router.route(texts), tuned(router, keep=0.5).route(texts), strict=True):
        assert before.label_probabilities == after.label_probabilities


def test_rows_give_a_new_curve() -> None:
    curve = tuned(trained()[0], keep=0.95, rows=[*ROWS, *STRANGERS]).curve
    assert curve != trained()[0].curve
    assert curve.auroc is not None
    assert curve.auroc > 0.95


def test_mixes_hold_the_right_adapter_as_often_as_asked() -> None:
    router = tuned(trained()[0], coverage=0.9, rows=ROWS)
    fresh = make_rows(40, seed=43)
    routings = router.route([row.input for row in fresh])
    kept = [(r, row) for r, row in zip(routings, fresh, strict=True) if r.fits]
    assert np.mean([row.task in routing.mix().names for routing, row in kept]) >= 0.9


def test_invalid_wishes_are_refused() -> None:
    router = trained()[0]
    with pytest.raises(InvalidRequest, match="the fraction to keep"):
        tuned(router)
    with pytest.raises(InvalidRequest, match="give rows that the router was not trained on"):
        tuned(router, coverage=0.9)
    with pytest.raises(InvalidRequest, match="no row is of a task"):
        tuned(router, keep=0.9, rows=STRANGERS)
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        tuned(router, keep=1.0)
