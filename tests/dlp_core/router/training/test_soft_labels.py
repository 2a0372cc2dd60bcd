"""Training on soft labels: what is certain trains as a task does, what helps is taken, what hurts is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.router.files import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.router.rows import TaskRow, adapters_of, read_task_rows
from dlp_core.router.training.net import NetSettings
from dlp_core.router.training.soft_labels import settled
from dlp_core.router.training.train import checkpoints_of, train_router
from tests.support.router_rows import QUICK, make_rows

SHORT = replace(QUICK, net=NetSettings(epochs=0, min_steps=4, batch=32, widths=(16,)))


def test_certain_labels_train_as_tasks_do(tmp_path: Path) -> None:
    """Weights, curve and warnings are the same bytes."""
    hard = [*make_rows(12, seed=1), *(TaskRow(None, f"no task has {n} of these") for n in range(12))]
    soft = [TaskRow.labelled(row.input, {} if row.task is None else {row.task: 1.0}) for row in hard]
    for name, rows in (("hard", hard), ("soft", soft)):
        train_router(rows, SHORT)[0].save(tmp_path / name)
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "hard" / file).read_bytes() == (tmp_path / "soft" / file).read_bytes()


@pytest.mark.slow
def test_rows_go_where_they_are_helped_and_those_that_are_hurt_are_refused() -> None:
    """object_owner has no adapter and is helped by another task's, sum_numbers has one that hurts; half of the rows of
    the others have no labels."""
    labels: Mapping[str, Mapping[str, float]] = {
        "object_owner": {"flight_json": 0.8, "word_sorting": 0.1},
        "sum_numbers": {"sum_numbers": 0.1, "word_sorting": 0.1},
        "flight_json": {"flight_json": 0.95, "word_sorting": 0.02},
        "word_sorting": {"word_sorting": 0.9, "flight_json": 0.05},
    }
    rows = [
        row if n % 2 and row.task in ("flight_json", "word_sorting") else TaskRow.labelled(row.input, labels[row.task])
        for n, row in enumerate(make_rows(80, seed=0))
        if row.task is not None
    ]
    router, summary = train_router(rows, QUICK)
    assert router.labels == ("flight_json", "word_sorting")
    assert any("'sum_numbers' is the best adapter of 0 rows" in line for line in summary.warnings)
    expected = {"object_owner": "flight_json", "flight_json": "flight_json", "word_sorting": "word_sorting"}
    fresh = make_rows(20, seed=9)
    routings = router.route([row.input for row in fresh])
    right = {
        task: np.mean(
            [
                routing.fits and routing.best == expected[task] if task in expected else not routing.fits
                for routing, row in zip(routings, fresh, strict=True)
                if row.task == task
            ]
        )
        for task in labels
    }
    assert min(right.values()) >= 0.9, right


def test_labels_are_learnt_as_probabilities() -> None:
    """Prompts that two adapters serve equally well get both."""
    rows = [
        TaskRow.labelled(row.input, {"flight_json": 0.5, "object_owner": 0.5})
        if row.task == "word_sorting" and n % 2
        else TaskRow.labelled(row.input, {"object_owner": 0.5, "flight_json": 0.5})
        if row.task == "word_sorting"
        else row
        for n, row in enumerate(make_rows(60, seed=0))
    ]
    router, _ = train_router(rows, QUICK)
    logits = [
        router.network.logits(router.network.hidden(router.encoder.encode([row.input])))[0]
        for row in make_rows(10, seed=9)
        if row.task == "word_sorting"
    ]
    first, second = router.labels.index("flight_json"), router.labels.index("object_owner")
    assert np.mean([abs(each[first] - each[second]) for each in logits]) < 0.5


def test_an_adapter_that_is_rarely_the_best_is_left_out() -> None:
    rows = [
        *(TaskRow.labelled(f"a {n}", {"a": 0.8, "rare": 0.1}) for n in range(5)),
        *(TaskRow.labelled(f"b {n}", {"b": 0.6, "rare": 0.3}) for n in range(5)),
        TaskRow.labelled("c", {"a": 0.1, "rare": 0.8}),
        TaskRow.labelled("d", {"rare": 1.0}),
        TaskRow(None, "e"),
    ]
    found, lines = settled(rows, min_rows=3)
    assert lines == ("'rare' is the best adapter of 2 rows, too few to learn from (3): the router does not know it",)
    assert dict(found[0].labels or ()) == pytest.approx({"a": 0.8 / 0.9})
    assert (found[10].task, dict(found[10].labels or ())) == ("a", pytest.approx({"a": 0.5}))
    assert (found[11].task, found[11].labels) == (None, ())
    assert found[12] is rows[12]
    assert settled([*rows, TaskRow("rare", "f")], min_rows=3)[1] == ()


def test_rows_say_which_adapters_were_judged() -> None:
    rows = [TaskRow("a", "1"), TaskRow(None, "2"), TaskRow.labelled("3", {"b": 0.9, "c": 0.0})]
    assert adapters_of(rows) == {"a", "b", "c"}


def test_a_checkpoint_is_of_these_labels(tmp_path: Path) -> None:
    rows = [TaskRow.labelled(row.input, {str(row.task): 0.9}) for row in make_rows(12, seed=1)]
    checkpoints_of(tmp_path / "out", rows, SHORT).save("fit", {"step": 1})
    others = [TaskRow.labelled(row.input, {str(row.task): 0.8}) for row in make_rows(12, seed=1)]
    checkpoints_of(tmp_path / "out", rows, SHORT, resume=True)
    with pytest.raises(InvalidRequest, match="of another run: --data was"):
        checkpoints_of(tmp_path / "out", others, SHORT, resume=True)


@pytest.mark.parametrize(
    ("benefit", "problem"),
    [
        ([], r'"benefit" must be \{"labels"'),
        ({"labels": 3}, r'"benefit" must be \{"labels"'),
        ({"labels": {"a": 1.5}}, "the label of 'a' must be a probability, not 1.5"),
        ({"labels": {"a": True}}, "the label of 'a' must be a probability, not True"),
        ({"labels": {"a": "0.5"}}, "the label of 'a' must be a probability, not '0.5'"),
        ({"labels": {"a": 0.7, "b": 0.7}}, r"the labels sum to 1\.400"),
        ({"labels": {"no/name": 0.7}}, "no/name"),
    ],
)
def test_labels_that_are_none_are_refused_by_line(benefit: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"input": "x", "task": "a"}) + "\n" + json.dumps({"input": "y", "benefit": benefit}) + "\n"
    )
    with pytest.raises(InvalidRequest, match=problem) as refused:
        read_task_rows([path])
    assert refused.value.message.startswith(f"{path}:2: ")


def test_labels_say_more_than_the_task(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    records = [
        {"task": "left out", "input": "x", "benefit": {"labels": {"a": 0.2, "b": 0.7}, "plain": -3.0}},
        {"task": "a", "input": "y", "benefit": {"labels": {"a": 0.2, "b": 0.2}}},
        {"task": "a", "input": "z", "benefit": None},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_task_rows([path]) == [
        TaskRow("b", "x", 1, (("a", 0.2), ("b", 0.7))),
        TaskRow(None, "y", 1, (("a", 0.2), ("b", 0.2))),
        TaskRow("a", "z"),
    ]
