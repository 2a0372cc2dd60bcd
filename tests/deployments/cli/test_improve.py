"""`dlp improve` as an owner meets it: step by step, what it says, and what it wants first."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from deployments.cli import improve
from dlp_core.bank.canary import promote
from dlp_core.bank.revision import download_router, stage_router
from dlp_core.improve import run as runs
from dlp_core.router.rows import TaskRow
from dlp_core.router.training import train
from dlp_core.store.opening import open_store
from tests.deployments.cli.conftest import Run
from tests.support.improving import base_rows, give, give_rows, other_words, publish_first, request, said
from tests.support.router_rows import QUICK, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> str:
    place = str(tmp_path / "store")
    publish_first(open_store(place), tmp_path / "bank")
    return place


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "rows.jsonl", base_rows()))


@pytest.fixture
def dlp(monkeypatch: pytest.MonkeyPatch, command: Run, tmp_path: Path, place: str) -> Run:
    """Runs `dlp improve ...` with small trainings; returns exit code, stdout, stderr."""
    monkeypatch.setenv("DLP_BANK", place)
    monkeypatch.setattr("sys.stdin", StringIO())
    monkeypatch.setattr(improve, "WORK", tmp_path / "work")
    monkeypatch.setattr(train, "TrainSettings", lambda device: QUICK)

    return partial(command, "improve")


def json_of(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_every_step_in_turn(dlp: Run, place: str, data: str) -> None:
    store = open_store(place)
    give_rows(store, other_words(24, seed=5))
    assert json_of(dlp("status", "--json")) == {"bank": place, "run": None, "canary": None, "review": []}
    assert dlp("train")[::2] == (2, f"dlp: there is no run in {place}; `dlp improve collect` begins one\n")
    code, _, err = dlp("collect")
    assert (code, "--data ROWS" in err) == (2, True)
    assert json_of(dlp("collect", "--data", data, "--json"))["run"]["state"] == "collected"
    assert json_of(dlp("collect", "--json"))["run"]["state"] == "collected"  # once more changes nothing
    code, _, err = dlp("gate")
    assert (code, "run 1 is collected; next is `dlp improve propose`" in err) == (2, True)
    assert "0 topics" in dlp("propose")[1]
    trained = json_of(dlp("train", "--json"))["run"]
    assert (trained["state"], trained["next_step"]) == ("trained", "gate")
    assert json_of(dlp("gate", "--max-drop", "8", "--json"))["run"]["gate"]["stand_in"] is True
    shown = json_of(dlp("canary", "--share", "0.2", "--json"))
    assert (shown["canary"]["version"], shown["canary"]["share"]) == (shown["run"]["trained"]["version"], 0.2)
    assert shown["canary"]["promote_after_requests"] == 500
    code, out, _ = dlp("status")
    assert (code, "0 of 500 requests" in out) == (0, True)
    promote(store)
    assert json_of(dlp("canary", "--json"))["run"]["state"] == "promoted"
    code, out, _ = dlp("--min-rows", "5")
    assert (code, "waiting for feedback: 0 new rows of the 5 that a run needs" in out) == (0, True)


def test_one_command_takes_them_all(dlp: Run, place: str, data: str) -> None:
    wrong = TaskRow("sum_numbers", "a to z please, oak, elm, ash, fern")
    give_rows(open_store(place), [*other_words(24, seed=5), wrong])
    code, out, err = dlp("--data", data, "--max-drop", "8")
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("run 1 ")]
    states = [line.split()[2].rstrip(":") for line in lines]
    assert states == ["begun", "collected", "proposed", "trained", "passed", "canary"]
    assert "the teacher is not installed" in err
    review = json_of(dlp("status", "--json"))["review"]
    assert wrong.input in {row["input"] for row in review}


def test_a_refusal_is_exit_1_and_says_why(dlp: Run, place: str, data: str) -> None:
    store = open_store(place)
    give_rows(store, other_words(24, seed=5))
    for arguments in (("collect", "--data", data), ("propose",), ("train",)):
        assert dlp(*arguments)[0] == 0
    found = runs.latest(store)
    assert found is not None
    assert found[0].trained is not None
    router = download_router(store)
    deaf = replace(router, calibration=replace(router.calibration, threshold=-1e3))  # refuses everything
    version = stage_router(store, deaf, of=found[0].bank).version
    trained = found[0].trained.model_copy(update={"version": version})
    runs.replace(store, found[1], found[0].model_copy(update={"trained": trained}))
    code, out, _ = dlp("gate", "--max-drop", "8")
    assert (code, "run 1 refused: worse by more than 8 points" in out) == (1, True)


def test_topics_become_files_of_prompts(dlp: Run, place: str, tmp_path: Path) -> None:
    texts = [f"prune the apple tree in month {n}, or the pear tree" for n in range(12)]
    kept = [request(f"t{n}", text) for n, text in enumerate(texts)]
    give(open_store(place), *kept, said("x", text="y", adapter=None))
    found = json_of(dlp("propose", "--out", str(tmp_path / "topics"), "--json"))
    assert (found["looked_at"], [topic["prompts"] for topic in found["topics"]]) == (13, [12])
    assert sorted(found["topics"][0]["examples"]) == sorted(texts)
    (path,) = (tmp_path / "topics").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (sorted(line["input"] for line in lines), {line["output"] for line in lines}) == (sorted(texts), {""})


def test_what_is_wrong_is_said_in_one_line(dlp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLP_BANK")
    assert dlp("status")[::2] == (2, "dlp: Missing option '--bank' (env var: 'DLP_BANK')\n")
