"""`dlp router label`, and what `dlp router train` makes of its rows: prompts are routed by benefit."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from deployments.cli import main
from dlp_core.router import Router
from dlp_core.router.training import train
from dlp_core.router.training.train import TrainSettings
from dlp_core.store.checkpoints import checkpoint_folder
from tests.support.planted import answered_rows, write_base, write_planted_bank, write_records
from tests.support.router_rows import QUICK, make_rows

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dlp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `dlp router ...`; returns exit code, stdout, stderr."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dlp", "router", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.model
@pytest.mark.slow
def test_a_router_taught_by_benefit(dlp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a task without an adapter go to the one that helps, those of a task whose adapter hurts to none."""
    base = write_base(tmp_path / "base")
    bank = write_planted_bank(tmp_path / "bank", base)
    (bank / "adapters" / "sum_numbers" / "description.txt").write_text("Adds up the amounts of an invoice.\n")
    data = write_records(tmp_path / "rows.jsonl", answered_rows(16, seed=3))
    labels = tmp_path / "labels.jsonl"
    command = ["label", "--data", str(data), "--bank", str(bank), "--base-model", str(base), "--out", str(labels)]
    code, out, err = dlp(*command, "--dtype", "float32", "--threads", "1", "--json")
    assert code == 0, err
    assert json.loads(out) == {
        "labels": str(labels),
        "rows": 64,
        "own": 32,
        "other": 16,
        "none": 16,
        "own_hurts": 16,
        "best": {"flight_json": 32, "word_sorting": 16},
    }
    assert not checkpoint_folder(labels).exists()
    first = json.loads(labels.read_text().splitlines()[0])
    assert {"task", "input", "output"} < set(first)
    assert set(first["benefit"]) == {"labels", "gains", "log_likelihoods", "plain", "tokens"}
    assert set(first["benefit"]["log_likelihoods"]) == {"flight_json", "sum_numbers", "word_sorting"}

    monkeypatch.setattr(train, "TrainSettings", partial(TrainSettings, teacher=None, pieces=32, net=QUICK.net))
    code, out, err = dlp("train", "--data", str(labels), "--into", str(bank), "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert any("'sum_numbers' is the best adapter of 0 rows" in line for line in summary["warnings"])
    assert summary["by_description"] == [], "it was asked and did not help: its description is no reason to route to it"
    router = Router.load(bank / "router")
    assert router.labels == ("flight_json", "word_sorting")
    served = {"object_owner": "flight_json=1.00", "sum_numbers": "base"}
    fresh = make_rows(10, seed=11)
    mixes = [str(routing.mix(max_adapters=1)) for routing in router.route([row.input for row in fresh])]
    right = [mix == served.get(str(row.task), f"{row.task}=1.00") for mix, row in zip(mixes, fresh, strict=True)]
    assert np.mean(right) >= 0.9, mixes


def test_a_mistake_is_one_line_and_exit_2(dlp: Run, tmp_path: Path) -> None:
    data = write_records(tmp_path / "rows.jsonl", [{"task": "a", "input": "b"}])
    command = ["label", "--bank", str(tmp_path / "bank"), "--base-model", str(tmp_path / "base"), "--data", str(data)]
    for more, message in (
        (["--out", str(data)], f"--out is {data}; it must be another file, for the labels"),
        (["--out", str(tmp_path)], "it must be another file"),
        (["--out", str(tmp_path / "out"), "--dtype", "int3"], "--dtype is 'int3'"),
    ):
        code, out, err = dlp(*command, *more)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1


@pytest.mark.model
def test_rows_that_cannot_be_scored_are_named(dlp: Run, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    bank = write_planted_bank(tmp_path / "bank", base)
    command = ["label", "--bank", str(bank), "--base-model", str(base), "--out", str(tmp_path / "out.jsonl")]
    good = {"task": "flight_json", "input": "x", "output": "y"}
    for record, message, more in (
        ({"task": "a", "input": "b"}, "rows.jsonl:2: the answer is missing or empty", []),
        (
            {"input": "long " * 4000, "output": "b"},
            "rows.jsonl:2: the prompt and its answer have more than the 4096 tokens",
            [],
        ),
        (
            good,
            "the bank has no router to say which adapters may help; ask all 3 with --candidates 3",
            ["--candidates", "2"],
        ),
    ):
        data = write_records(tmp_path / "rows.jsonl", [good, record])
        code, out, err = dlp(*command, "--data", str(data), "--dtype", "float32", *more)
        assert (code, out) == (2, ""), err
        assert message in err
        assert not (tmp_path / "out.jsonl").exists()
