"""26 BIG-bench tasks, 22 of them the paper's. DLP_TEST_BIGBENCH: a folder with train.jsonl.gz and test.jsonl.gz."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dlp_core.router.augment import mistype, strip_instruction
from dlp_core.router.evaluation import evaluate
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.router.training import train_router

FOLDER = os.environ.get("DLP_TEST_BIGBENCH")

pytestmark = [
    pytest.mark.skipif(FOLDER is None, reason="DLP_TEST_BIGBENCH names no folder with the BIG-bench rows"),
    pytest.mark.timeout(1800),
]


def _rows(split: str) -> list[TaskRow]:
    assert FOLDER is not None
    return read_task_rows([Path(FOLDER) / f"{split}.jsonl.gz"])


def test_the_papers_tasks_are_told_apart() -> None:
    router, _ = train_router(_rows("train"))
    rows = _rows("test")
    result = evaluate(router, rows)
    assert result.accuracy >= 0.99
    assert result.ece <= 0.02
    assert result.kept >= 0.98
    assert result.single >= 0.98
    for damage, least in ((strip_instruction, 0.95), (lambda text: mistype(text, Random(0), 0.05), 0.96)):
        routings = router.route([damage(row.input) for row in rows])
        assert np.mean([routing.best == row.task for routing, row in zip(routings, rows, strict=True)]) >= least


def test_tasks_never_seen_are_recognised_as_such() -> None:
    train = _rows("train")
    unseen = Random(0).sample(sorted({row.task for row in train if row.task}), 4)
    router, _ = train_router([row for row in train if row.task not in unseen])
    result = evaluate(router, _rows("test"))
    assert result.unknown_rows >= 300
    assert result.unknown_auroc is not None
    assert result.unknown_auroc >= 0.96
