"""What a folder of evaluations has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.console.reports import Reports
from deployments.console.settings import ConsoleSettings
from dlp_core.errors import InvalidRequest
from tests.deployments.console.conftest import reports


def test_each_bank_is_compared_with_the_one_before_it(tmp_path: Path) -> None:
    found = Reports(reports(tmp_path)).json()
    first, second = found["results"]
    assert (first["bank"]["version"], first["verdict"]) == ("bank-0", None)
    assert second["verdict"]["baseline"] == "bank-0"
    assert (second["verdict"]["passed"], second["verdict"]["worse"]) == (False, ["sql"])
    assert second["verdict"]["tasks"]["sql"]["mean"] == pytest.approx(-60)
    assert "rows" not in second
    assert [one["path"] for one in found["unreadable"]] == ["damaged.json"]
    json.dumps(found, allow_nan=False)


def test_the_gates_own_verdict_is_read(tmp_path: Path) -> None:
    gate = {"passed": True, "worse": [], "bank": "b2", "baseline": "b1", "tasks": {}, "mean": {}}
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    assert Reports(tmp_path).json()["gates"] == [{**gate, "path": "gate.json"}]


def test_results_without_rows_are_shown_and_not_compared(tmp_path: Path) -> None:
    for path in reports(tmp_path).rglob("results.json"):
        results = json.loads(path.read_text())
        del results["rows"]
        path.write_text(json.dumps(results))
    assert [one["verdict"] for one in Reports(tmp_path).json()["results"]] == [None, None]


def test_what_changes_is_read_again(tmp_path: Path) -> None:
    read = Reports(reports(tmp_path))
    assert len(read.json()["results"]) == 2
    (tmp_path / "1" / "results.json").unlink()
    assert len(read.json()["results"]) == 1
    (tmp_path / "damaged.json").write_text("{")
    assert read.json()["unreadable"] == []


def test_without_a_folder_there_is_nothing_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    assert Reports(None).json()["folder"] is None
    with pytest.raises(InvalidRequest, match="--reports"):
        ConsoleSettings("http://127.0.0.1:8000", reports=tmp_path / "none")
