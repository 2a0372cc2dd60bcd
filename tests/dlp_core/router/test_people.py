"""What people write: CLINC150, 150 intents. DLP_TEST_INTENTS: a folder with clinc150_train.jsonl.gz and
_val.jsonl.gz."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlp_core.router.evaluation import evaluate
from dlp_core.router.growth import add_adapter
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.router.training.teacher import packaged_teacher
from dlp_core.router.training.train import train_router

FOLDER = os.environ.get("DLP_TEST_INTENTS")

pytestmark = [
    pytest.mark.skipif(FOLDER is None, reason="DLP_TEST_INTENTS does not name a folder with the intents"),
    pytest.mark.skipif(packaged_teacher() is None, reason="the teacher is not installed"),
    pytest.mark.timeout(1800),
]

INTENTS, ROWS = 60, 40
ADDED = "exchange_rate"
DESCRIPTION = "Tells how much one currency is worth in another."


def _rows(split: str) -> list[TaskRow]:
    assert FOLDER is not None
    return read_task_rows([Path(FOLDER) / f"clinc150_{split}.jsonl.gz"])


@pytest.mark.model
def test_people_are_understood_and_strangers_refused() -> None:
    """One training, on 40 of the 100 rows of each of 60 of the 150 intents, serves all of it. docs/performance.md
    reports what all rows of all intents give."""
    train, val = _rows("train"), _rows("val")
    intents = sorted({row.task for row in train if row.task is not None} - {ADDED})[:INTENTS]
    router, summary = train_router(
        [row for task in intents for row in [row for row in train if row.task == task][:ROWS]]
    )
    assert summary.parameters <= 5.5e6
    known = [row for row in val if row.task in intents]
    strangers = [row for row in (*train, *val) if row.task is None]
    result = evaluate(router, [*known, *strangers])
    assert result.accuracy >= 0.93
    assert result.accuracy - result.typos <= 0.05
    assert result.in_mix >= 0.965
    assert result.mix_size <= 1.3
    assert result.pairs is not None
    assert result.pairs >= 0.8
    assert result.unknown_auroc is not None
    assert result.unknown_auroc >= 0.97
    assert result.unknown_refused_at_95 is not None
    assert result.unknown_refused_at_95 >= 0.85

    own = [row.input for row in val if row.task == ADDED]
    examples = [row.input for row in train if row.task == ADDED]
    for texts, description, least in ((examples[:16], None, 0.9), (examples[:4], None, 0.7), ([], DESCRIPTION, 0.5)):
        grown, _ = add_adapter(router, ADDED, texts, description=description)
        right = [routing.best == ADDED for routing in grown.route(own)]
        assert sum(right) / len(right) >= least
        lost = result.accuracy - evaluate(grown, known[::4]).accuracy
        assert lost <= 0.02
