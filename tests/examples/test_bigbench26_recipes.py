"""The study of recipes, on a tiny bank: every file of it, and that a second run computes nothing again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from examples.bigbench26.recipes import main
from examples.tiny.build import BASE, TASKS, write_bank

pytestmark = [pytest.mark.model, pytest.mark.slow]


def write_rows(path: Path, count: int) -> None:
    rows = [
        {"task": task, "type": "qa", "input": text.format(number), "output": f"{task} {number}"}
        for task, text in TASKS.items()
        for number in range(count)
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_task_is_left_out_and_a_pair_is_asked_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bank(tmp_path)
    data, out = tmp_path / "rows", tmp_path / "out"
    data.mkdir()
    write_rows(data / "train.jsonl.gz", 20)
    write_rows(data / "test.jsonl.gz", 4)

    def study() -> str:
        main(
            *(tmp_path / BASE, data, tmp_path / "bank", out),
            **{"tasks": 1, "pairs": 1, "rows": 16, "test_rows": 3, "prompts": 3, "threads": 1},
        )
        return (out / "recipes.json").read_text("utf-8")

    text = study()
    report = json.loads(text)
    [left_out], [pair] = report["left_out"], report["pairs"]
    assert left_out["task"] in TASKS
    assert left_out["task"] not in left_out["mix"]
    assert left_out["best"] != left_out["task"]
    assert {name: len(scores) for name, scores in left_out["scores"].items()} == dict.fromkeys(
        ["recipe", "best", "plain", "kept"], 3
    )
    assert set(pair["task"].split()) < set(TASKS)
    assert set(pair["scores"]) == {"recipe", "half", "plain", "kept"}
    assert set(report["differences"]["left out"]) == {"recipe - best", "recipe - plain", "kept - best", "kept - plain"}
    assert "newest rows" not in text
    capsys.readouterr()
    assert study() == text
    assert capsys.readouterr().err == ""
