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


def test_the_papers_tasks_are_distinguished() -> None:
    router, _ = train_router(_rows("train"))
    result = evaluate(router, _rows("test"))
    assert result.accuracy >= 0.995
    assert result.ece <= 0.01
    assert result.kept >= 0.98
    assert result.single >= 0.98
    assert result.typos >= 0.96
    assert result.bare >= 0.95
    assert 4.5e6 <= result.parameters <= 5.5e6


def test_unseen_tasks_are_recognised_as_such() -> None:
    train = _rows("train")
    unseen = Random(0).sample(sorted({row.task for row in train if row.task}), 4)
    router, _ = train_router([row for row in train if row.task not in unseen])
    result = evaluate(router, _rows("test"))
    assert result.unknown_rows >= 300
    assert result.unknown_auroc is not None
    assert result.unknown_auroc >= 0.96
