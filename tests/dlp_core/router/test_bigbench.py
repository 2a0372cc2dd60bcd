"""26 BIG-bench tasks, 22 of them the paper's. DLP_TEST_BIGBENCH: a folder with train.jsonl.gz and test.jsonl.gz."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from dlp_core.router.evaluation import evaluate
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.router.training.train import train_router

FOLDER = os.environ.get("DLP_TEST_BIGBENCH")

pytestmark = [
    pytest.mark.skipif(FOLDER is None, reason="DLP_TEST_BIGBENCH does not name a folder with the BIG-bench rows"),
    pytest.mark.timeout(1800),
]


def _rows(split: str) -> list[TaskRow]:
    assert FOLDER is not None
    return read_task_rows([Path(FOLDER) / f"{split}.jsonl.gz"])


@pytest.mark.model
def test_the_papers_tasks_are_distinguished_and_unseen_ones_recognised() -> None:
    """A part of the rows, which is enough for templates."""
    by_task: dict[str, list[TaskRow]] = {}
    for row in _rows("train"):
        by_task.setdefault(str(row.task), []).append(row)
    unseen = Random(0).sample(sorted(by_task), 4)
    router, _ = train_router([row for task, rows in by_task.items() if task not in unseen for row in rows[:40]])
    result = evaluate(router, _rows("test")[::6])
    assert result.accuracy >= 0.975
    assert result.ece <= 0.03
    assert result.kept >= 0.95
    assert result.typos >= 0.95
    assert result.bare >= 0.85
    assert result.unknown_rows >= 50
    assert result.unknown_auroc is not None
    assert result.unknown_auroc >= 0.96
    assert result.parameters <= 5.5e6
