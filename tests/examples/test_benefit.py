"""The comparison of routers taught by benefit, on planted adapters: it resumes, and says what was planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dlp_core.eval.run import Setup
from dlp_core.eval.suite import TypeSettings, suite_of_rows
from dlp_core.router.training.net import NetSettings
from dlp_core.text.rows import read_rows
from examples.bigbench26.benefit import compare, draw, table
from tests.support.planted import answered_rows, write_base, write_planted_bank, write_records
from tests.support.router_rows import QUICK

pytestmark = [pytest.mark.model, pytest.mark.slow]

SHORT = replace(QUICK, net=NetSettings(epochs=1, min_steps=120, batch=64, widths=(64,)))


def test_the_experiment_resumes_and_says_what_was_planted(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    bank = write_planted_bank(tmp_path / "bank", base)
    records = answered_rows(16, seed=3)
    suite = suite_of_rows(write_records(tmp_path / "test.jsonl", answered_rows(2, seed=5)))
    words = {"text": TypeSettings(metrics=("f1",), max_tokens=16)}  # the model never ends an answer
    suite = replace(suite, settings=suite.settings.model_copy(update={"types": words}))
    rows = draw(list(read_rows(write_records(tmp_path / "train.jsonl", records))), suite.tasks, 12)
    assert len(rows) == 48
    setup = Setup(base, "float32", "cpu", 1)
    result = compare(suite, rows, bank, setup, tmp_path / "out", left_out=("object_owner",), settings=SHORT)
    tasks = result["tasks"]
    assert tasks["object_owner"]["labels"] == {"flight_json": 12}
    assert tasks["sum_numbers"]["labels"] == {"base": 12}
    assert tasks["object_owner"]["seen"]["first"] == {"flight_json": 2}
    assert tasks["object_owner"]["plain"]["score"] < tasks["object_owner"]["seen"]["score"]
    assert tasks["sum_numbers"]["known"]["first"] == {"base": 2}
    assert result["differences"]["seen - plain"]["low"] > 0
    assert "own" not in tasks["object_owner"]
    assert table(result).row_count == 4
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != "answers.jsonl"}
    assert compare(suite, rows, bank, setup, tmp_path / "out", left_out=("object_owner",), settings=SHORT) == result
    assert {path: path.stat().st_mtime_ns for path in kept if path.suffix == ".json"} == {
        path: time for path, time in kept.items() if path.suffix == ".json"
    }
